// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub} from "../src/ChannelHub.sol";
import {Channel, Claim, OpenAuth, Withdraw} from "../src/TypedData.sol";
import {Authorization, Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Yes} from "./Wallet.sol";

/// What somebody would try who reads the mempool, keeps old signatures, or owns one of the keys.
contract AttackTest is Fixture {
    // ---- front running -----------------------------------------------------------------------

    /// Someone uses the deposit of a pending multicall first: the multicall still opens.
    function test_ADepositTakenOutOfAMulticallDoesNotBreakIt() public {
        usd.mint(stranger, DEPOSIT);
        (Authorization memory auth, bytes memory signature) = authorization(STRANGER, DEPOSIT, "n");
        OpenAuth memory opening = openAuth();
        opening.channel.buyer = stranger;
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(hub.depositWithAuthorization, (address(usd), auth, signature));
        calls[1] = abi.encodeCall(hub.open, (opening, signOpen(STRANGER, opening)));

        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.prank(seller);
        hub.multicall(calls);
        vm.assertEq(stateOf(opening.channel).deposit, DEPOSIT);
        vm.assertEq(vault(stranger), 0);
        vm.assertEq(vault(seller), FEE);
    }

    /// Someone does the pieces of a relayer's bundle one by one: it still runs and earns its fee.
    function test_ABundleSurvivesThatItsPiecesAreDoneFirst() public {
        (Channel memory a, Channel memory b) = (opened("a"), opened("b"));
        vm.warp(EXPIRY);
        uint40 validBefore = EXPIRY + 600;
        bytes memory request = signRequestClose(HOT, b, validBefore);
        Withdraw memory fee = feeFor(seller, validBefore);
        bytes[] memory calls = new bytes[](3);
        calls[0] = abi.encodeCall(hub.reclaim, (a));
        calls[1] = abi.encodeCall(hub.requestCloseBySig, (b, validBefore, request));
        calls[2] = abi.encodeCall(hub.withdrawBySig, (fee, signWithdraw(BUYER, fee)));

        hub.reclaim(a);
        close(b);
        vm.prank(seller);
        hub.multicall(calls);
        vm.assertEq(vault(seller), 5 + 2 * FEE);
    }

    /// Someone submits the relayer's withdrawal first: the named relayer is paid all the same.
    function test_ANamedRelayerCannotBeRobbedOfItsFee() public {
        Withdraw memory fee = feeFor(seller, SOON);
        bytes memory signature = signWithdraw(BUYER, fee);
        vm.prank(stranger);
        hub.withdrawBySig(fee, signature);
        vm.assertEq(vault(stranger), 0);
        vm.assertEq(vault(seller), 5);
    }

    /// A multicall is its sender's: it does not make the hub the sender.
    function test_AMulticallKeepsItsSender() public {
        bytes[] memory calls = new bytes[](1);
        calls[0] = abi.encodeCall(hub.withdraw, (address(usd), stranger, 1));
        fund(address(hub), 1);
        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(stranger);
        hub.multicall(calls);
    }

    function test_AFailureInsideAMulticallUndoesItAll() public {
        Channel memory c = opened();
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(hub.settle, (claim(c, DOLLAR)));
        calls[1] = abi.encodeCall(hub.reclaim, (c));
        vm.expectRevert(ChannelHub.NotExpired.selector);
        hub.multicall(calls);
        vm.assertEq(vault(seller), FEE);
    }

    // ---- replay ------------------------------------------------------------------------------

    function test_NothingSignedForOneHubOrChainWorksInAnother() public {
        Channel memory c = opened();
        OpenAuth memory opening = openAuth();
        opening.channel.salt = "next";
        bytes memory openSig = signOpen(BUYER, opening);
        bytes memory topUpSig = signTopUp(BUYER, c, 2 * DEPOSIT, EXPIRY, SOON);
        bytes memory requestSig = signRequestClose(HOT, c, SOON);
        bytes memory closeSig = signClose(SELLER, c, DOLLAR, SOON);
        Withdraw memory w = feeFor(seller, SOON);
        bytes memory withdrawSig = signWithdraw(BUYER, w);
        Claim memory voucher = claim(c, DOLLAR);

        ChannelHub first = hub;
        for (uint256 i = 0; i < 2; ++i) {
            uint256 here = vm.snapshotState();
            if (i == 0) {
                hub = new ChannelHub();
            } else {
                vm.chainId(8453);
                hub = first;
            }
            // The other hub has the same money and the same channel, so only the domain differs.
            if (hub != first) fund(buyer, 100 * DOLLAR);
            opened();

            vm.expectRevert(Vault.BadSignature.selector);
            hub.open(opening, openSig);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.topUp(c, 2 * DEPOSIT, EXPIRY, SOON, topUpSig);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.requestCloseBySig(c, SOON, requestSig);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.closeBySig(voucher, SOON, closeSig);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.withdrawBySig(w, withdrawSig);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.settle(voucher);
            vm.revertToState(here);
        }
    }

    /// A signature for one purpose is never one for another, even with the same fields.
    function test_ACloseAgreementIsNoCloseRequest() public {
        Channel memory c = opened();
        bytes memory agreement = signClose(HOT, c, 0, SOON);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.requestCloseBySig(c, SOON, agreement);
        bytes memory request = signRequestClose(SELLER, c, SOON);
        Claim memory none = claim(c, 0);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(none, SOON, request);
    }

    // ---- one key stolen, or one side hostile -------------------------------------------------

    /// The seller keeps a top-up back and answers the buyer's close request with it.
    function test_ASellerCannotAnswerACloseRequestWithATopUp() public {
        Channel memory c = opened();
        bytes memory signature = signTopUp(BUYER, c, 50 * DOLLAR, EXPIRY + 365 days, SOON);
        hub.requestCloseBySig(c, SOON, signRequestClose(BUYER, c, SOON));
        vm.expectRevert(ChannelHub.ChannelEnding.selector);
        vm.prank(seller);
        hub.topUp(c, 50 * DOLLAR, EXPIRY + 365 days, SOON, signature);
        vm.assertEq(vault(buyer), 100 * DOLLAR - DEPOSIT);
    }

    /// Who has the voucher key can spend the channel, but neither the vault nor on another seller.
    function test_AStolenVoucherKeyReachesOneDeposit() public {
        Channel memory c = opened();
        hub.settle(claim(c, type(uint96).max));
        OpenAuth memory opening = openAuth();
        opening.channel.seller = stranger;
        opening.channel.salt = "mine";
        bytes memory openSig = signOpen(HOT, opening);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.open(opening, openSig);
        Withdraw memory w = feeFor(stranger, SOON);
        bytes memory withdrawSig = signWithdraw(HOT, w);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.withdrawBySig(w, withdrawSig);
        vm.assertEq(vault(buyer), 100 * DOLLAR - DEPOSIT);
    }

    /// Who has the operator's key can give money back, and nothing else.
    function test_AStolenOperatorKeyTakesNothing() public {
        hub.settle(claim(opened(), DOLLAR));
        Withdraw memory w = feeFor(stranger, SOON);
        w.account = seller;
        bytes memory signature = signWithdraw(OPERATOR, w);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.withdrawBySig(w, signature);
        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(operator);
        hub.withdraw(address(usd), operator, 1);
        vm.assertEq(vault(seller), DOLLAR);
    }

    /// The one attack the hub cannot stop, because a seller signs no opening: the buyer names its
    /// own key as the operator. A seller must not serve such a channel.
    function test_WhoeverTheBuyerNamesAsOperatorCanClose() public {
        OpenAuth memory opening = openAuth();
        opening.channel.operator = stranger;
        hub.open(opening, signOpen(BUYER, opening));
        Claim memory none;
        none.channel = opening.channel;
        vm.prank(stranger);
        hub.close(none);
        vm.assertEq(hub.settle(claim(opening.channel, DOLLAR)), 0);
        vm.assertEq(vault(seller), FEE);
    }

    /// A buyer asks for the end and tries to be back before the seller's last chance.
    function test_ABuyerCannotShortenTheChallengePeriod() public {
        Channel memory c = opened();
        vm.prank(buyer);
        hub.requestClose(c);
        vm.warp(NOW + PERIOD - 1);
        vm.prank(buyer);
        hub.requestClose(c);
        vm.expectRevert(ChannelHub.NotExpired.selector);
        hub.reclaim(c);
        hub.settle(claim(c, DEPOSIT));
        vm.assertEq(vault(seller), DEPOSIT);
    }

    /// A changed descriptor is another channel, and nobody opened that.
    function test_AChangedDescriptorReachesNoMoney() public {
        Channel memory c = opened();
        c.buyer = stranger;
        vm.warp(EXPIRY);
        vm.expectRevert(ChannelHub.ChannelUnknown.selector);
        hub.reclaim(c);
        c = channel();
        c.seller = stranger;
        vm.assertEq(hub.settle(claim(c, DOLLAR)), 0);
        c = channel();
        c.operator = stranger;
        Claim memory none = claim(c, 0);
        vm.expectRevert(ChannelHub.ChannelUnknown.selector);
        vm.prank(stranger);
        hub.close(none);
    }

    /// Wallets that answer with too little, with another value, or with more than four bytes.
    function test_OnlyTheExactAnswerOfAWalletCounts() public {
        bytes[4] memory wrong = [
            bytes(""),
            abi.encodePacked(bytes4(0x1626ba7e)),
            abi.encode(true),
            abi.encode(0x1626ba7e)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            address wallet = address(new Yes(wrong[i]));
            fund(wallet, 5);
            Withdraw memory w = feeFor(stranger, SOON);
            w.account = wallet;
            vm.expectRevert(Vault.BadSignature.selector);
            hub.withdrawBySig(w, "");
        }
        address right = address(new Yes(abi.encode(bytes4(0x1626ba7e))));
        fund(right, 5);
        Withdraw memory fee = feeFor(stranger, SOON);
        fee.account = right;
        hub.withdrawBySig(fee, "");
        vm.assertEq(vault(stranger), 5);
    }

    /// Money sent past `deposit` belongs to nobody and upsets nothing.
    function test_ADonationUpsetsNothing() public {
        usd.mint(address(hub), 1);
        vm.prank(buyer);
        hub.withdraw(address(usd), buyer, 100 * DOLLAR);
        fund(seller, 3);
        vm.assertEq(vault(seller), 3);
        vm.assertEq(usd.balanceOf(address(hub)), 4);
    }

    function feeFor(address relayer, uint40 validBefore) private view returns (Withdraw memory) {
        return Withdraw({
            account: buyer,
            token: address(usd),
            to: address(0),
            amount: 0,
            relayer: relayer,
            fee: 5,
            nonce: 0,
            validBefore: validBefore
        });
    }
}
