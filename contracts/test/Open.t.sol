// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, OpenAuth} from "../src/TypedData.sol";
import {Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Wallet} from "./Wallet.sol";

contract OpenTest is Fixture {
    function test_OpeningSetsTheDepositAsideAndPaysTheFee() public {
        OpenAuth memory auth = openAuth();
        bytes32 id = hub.channelId(auth.channel);
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelOpened(id, buyer, seller, auth.channel, DEPOSIT, FEE, EXPIRY);
        vm.assertEq(hub.open(auth, signOpen(BUYER, auth)), id);

        ChannelState memory state = hub.stateOf(id);
        vm.assertEq(state.deposit, DEPOSIT);
        vm.assertEq(state.settled, FEE);
        vm.assertEq(state.expiry, EXPIRY);
        vm.assertFalse(state.closing || state.closed);
        vm.assertEq(vault(buyer), 100 * DOLLAR - DEPOSIT);
        vm.assertEq(vault(seller), FEE);
    }

    function test_AChannelIdIsTheDigestOfItsDescriptor() public view {
        Channel memory c = channel();
        bytes32 domain = keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("SoukChannelHub"),
                keccak256("1"),
                block.chainid,
                address(hub)
            )
        );
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "Channel(address buyer,address seller,address operator,address token,address voucherSigner,uint32 challengePeriod,bytes32 salt)"
                ),
                buyer,
                seller,
                operator,
                usd,
                hot,
                PERIOD,
                bytes32(uint256(1))
            )
        );
        vm.assertEq(hub.domainSeparator(), domain);
        vm.assertEq(hub.channelId(c), keccak256(abi.encodePacked(hex"1901", domain, structHash)));
    }

    function test_AnIdOpensOnceEvenAfterItsEnd() public {
        Channel memory c = opened();
        OpenAuth memory auth = openAuth();
        bytes memory signature = signOpen(BUYER, auth);
        vm.expectRevert(ChannelHub.ChannelExists.selector);
        hub.open(auth, signature);

        close(c);
        vm.expectRevert(ChannelHub.ChannelExists.selector);
        hub.open(auth, signature);

        // Other terms do not help: they are not part of the id.
        (auth.deposit, auth.expiry) = (1 * DOLLAR, EXPIRY + 1);
        signature = signOpen(BUYER, auth);
        vm.expectRevert(ChannelHub.ChannelExists.selector);
        hub.open(auth, signature);
    }

    function test_AChannelWithoutSellerOrVoucherSignerIsRefused() public {
        OpenAuth memory auth = openAuth();
        auth.channel.seller = address(0);
        refused(auth, ChannelHub.BadChannel.selector);
        auth = openAuth();
        auth.channel.voucherSigner = address(0);
        refused(auth, ChannelHub.BadChannel.selector);
    }

    function test_TheChallengePeriodIsAnHourToThirtyDays() public {
        OpenAuth memory auth = openAuth();
        auth.expiry = NOW + 31 days;
        auth.channel.challengePeriod = 1 hours - 1;
        refused(auth, ChannelHub.BadChannel.selector);
        auth.channel.challengePeriod = 30 days + 1;
        refused(auth, ChannelHub.BadChannel.selector);
        auth.channel.challengePeriod = 1 hours;
        hub.open(auth, signOpen(BUYER, auth));
        auth.channel.challengePeriod = 30 days;
        hub.open(auth, signOpen(BUYER, auth));
    }

    function test_TheFeeIsAtMostTheDeposit() public {
        OpenAuth memory auth = openAuth();
        auth.openFee = DEPOSIT + 1;
        refused(auth, ChannelHub.BadAmount.selector);
        auth.openFee = DEPOSIT;
        hub.open(auth, signOpen(BUYER, auth));
        vm.assertEq(vault(seller), DEPOSIT);
    }

    function test_TheExpiryIsAChallengePeriodAwayAtLeast() public {
        OpenAuth memory auth = openAuth();
        auth.expiry = NOW + PERIOD - 1;
        refused(auth, ChannelHub.BadExpiry.selector);
        auth.expiry = NOW + PERIOD;
        hub.open(auth, signOpen(BUYER, auth));
    }

    function test_AnAuthorisationEndsBeforeItsTime() public {
        OpenAuth memory auth = openAuth();
        vm.warp(SOON);
        refused(auth, Vault.AuthExpired.selector);
        vm.warp(SOON - 1);
        hub.open(auth, signOpen(BUYER, auth));
    }

    function test_TheVaultMustCoverTheDeposit() public {
        OpenAuth memory auth = openAuth();
        auth.deposit = 100 * DOLLAR + 1;
        refused(auth, Vault.InsufficientBalance.selector);
        auth.deposit = 100 * DOLLAR;
        hub.open(auth, signOpen(BUYER, auth));
        vm.assertEq(vault(buyer), 0);
    }

    function test_MoneyInAnotherTokenDoesNotCount() public {
        OpenAuth memory auth = openAuth();
        auth.channel.token = address(new TestUSD());
        refused(auth, Vault.InsufficientBalance.selector);
    }

    function test_OnlyTheBuyerOpensItsChannels() public {
        uint256[4] memory keys = [SELLER, OPERATOR, HOT, STRANGER];
        OpenAuth memory auth = openAuth();
        for (uint256 i = 0; i < keys.length; ++i) {
            bytes memory signature = signOpen(keys[i], auth);
            vm.expectRevert(Vault.BadSignature.selector);
            vm.prank(vm.addr(keys[i]));
            hub.open(auth, signature);
        }
    }

    /// A failed recovery gives address zero, which must not pass for the owner of that vault.
    function test_AMissingBuyerSignsNothing() public {
        fund(address(hub), DEPOSIT);
        OpenAuth memory auth = openAuth();
        auth.channel.buyer = address(0);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.open(auth, new bytes(65));
        vm.expectRevert(Vault.BadSignature.selector);
        hub.open(auth, "");
    }

    function test_AContractWalletOpensByItsOwnRules() public {
        address wallet = address(new Wallet(stranger));
        fund(wallet, DEPOSIT);
        OpenAuth memory auth = openAuth();
        auth.channel.buyer = wallet;
        refused(auth, Vault.BadSignature.selector);
        hub.open(auth, signOpen(STRANGER, auth));
        vm.assertEq(vault(wallet), 0);
    }

    function test_AMirroredSignatureIsRefused() public {
        OpenAuth memory auth = openAuth();
        bytes memory signature = signOpen(BUYER, auth);
        uint256 n = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        assembly {
            mstore(add(signature, 64), sub(n, mload(add(signature, 64))))
        }
        signature[64] = bytes1(uint8(signature[64]) ^ 7); // 27 <-> 28
        vm.expectRevert(Vault.BadSignature.selector);
        hub.open(auth, signature);
    }

    function refused(OpenAuth memory auth, bytes4 reason) private {
        bytes memory signature = signOpen(BUYER, auth);
        vm.expectRevert(reason);
        hub.open(auth, signature);
    }
}
