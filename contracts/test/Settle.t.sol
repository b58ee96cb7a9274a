// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {Channel, Claim} from "../src/TypedData.sol";
import {Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Wallet} from "./Wallet.sol";

contract SettleTest is Fixture {
    Channel internal c;

    function setUp() public override {
        super.setUp();
        c = opened();
    }

    function test_AVoucherPaysWhatItAdds() public {
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelSettled(hub.channelId(c), DOLLAR, DOLLAR - FEE);
        vm.prank(stranger);
        vm.assertEq(hub.settle(claim(c, DOLLAR)), DOLLAR - FEE);
        vm.assertEq(hub.settle(claim(c, 3 * DOLLAR)), 2 * DOLLAR);
        vm.assertEq(vault(seller), 3 * DOLLAR);

        ChannelState memory state = stateOf(c);
        vm.assertEq(state.settled, 3 * DOLLAR);
        vm.assertEq(state.deposit, DEPOSIT);
        vm.assertEq(state.expiry, EXPIRY);
        vm.assertEq(vault(buyer), 100 * DOLLAR - DEPOSIT);
    }

    function test_AnOldVoucherDoesNothing() public {
        hub.settle(claim(c, 2 * DOLLAR));
        vm.recordLogs();
        vm.assertEq(hub.settle(claim(c, 2 * DOLLAR)), 0);
        vm.assertEq(hub.settle(claim(c, DOLLAR)), 0);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(vault(seller), 2 * DOLLAR);
    }

    function test_AVoucherAboveTheDepositIsWorthTheDeposit() public {
        vm.assertEq(hub.settle(claim(c, type(uint96).max)), DEPOSIT - FEE);
        vm.assertEq(vault(seller), DEPOSIT);
        vm.assertEq(stateOf(c).settled, DEPOSIT);
    }

    function test_AVoucherAboveTheDepositIsWorthMoreAfterATopUp() public {
        Claim memory big = claim(c, 8 * DOLLAR);
        hub.settle(big);
        hub.topUp(c, 10 * DOLLAR, EXPIRY, SOON, signTopUp(BUYER, c, 10 * DOLLAR, EXPIRY, SOON));
        vm.assertEq(hub.settle(big), 3 * DOLLAR);
    }

    function test_OnlyTheVoucherSignerSigns() public {
        uint256[4] memory keys = [BUYER, SELLER, OPERATOR, STRANGER];
        for (uint256 i = 0; i < keys.length; ++i) {
            Claim memory forged = claim(c, DOLLAR, keys[i]);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.settle(forged);
        }
    }

    function test_AVoucherIsForItsAmountAndChannelOnly() public {
        Claim memory changed = claim(c, DOLLAR);
        changed.cumulative = DOLLAR + 1;
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settle(changed);

        changed = claim(c, DOLLAR);
        changed.channel = opened("other");
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settle(changed);
    }

    function test_GarbageIsNoSignature() public {
        Claim memory garbage = claim(c, DOLLAR);
        (garbage.r, garbage.vs) = (0, 0);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settle(garbage);
    }

    /// Vouchers are checked off chain by the seller, so a wallet's own rules cannot count.
    function test_AWalletCannotSignVouchers() public {
        vm.etch(hot, address(new Wallet(stranger)).code);
        vm.assertEq(hub.settle(claim(c, DOLLAR)), DOLLAR - FEE);
        Claim memory byOwner = claim(c, 2 * DOLLAR, STRANGER);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settle(byOwner);
    }

    function test_AfterTheExpiryAVoucherCountsUntilTheReclaim() public {
        vm.warp(EXPIRY + 1);
        vm.assertEq(hub.settle(claim(c, DOLLAR)), DOLLAR - FEE);
        hub.reclaim(c);
        vm.assertEq(hub.settle(claim(c, 2 * DOLLAR)), 0);
        vm.assertEq(vault(seller), DOLLAR);
    }

    function test_AnUnknownChannelPaysNothing() public {
        c.salt = "other";
        vm.assertEq(hub.settle(claim(c, DOLLAR)), 0);
        vm.assertEq(stateOf(c).expiry, 0);
    }

    function test_ABatchPaysEachAndSkipsWhatIsDone() public {
        Channel memory second = opened("second");
        Channel memory gone = opened("gone");
        close(gone);
        Channel memory unknown = channel();
        unknown.salt = "unknown";

        Claim[] memory batch = new Claim[](6);
        batch[0] = claim(c, DOLLAR);
        batch[1] = claim(gone, DOLLAR);
        batch[2] = claim(second, 2 * DOLLAR);
        batch[3] = claim(unknown, DOLLAR);
        batch[4] = claim(c, DOLLAR);
        batch[5] = claim(c, 2 * DOLLAR);
        hub.settleBatch(batch);
        vm.assertEq(stateOf(c).settled, 2 * DOLLAR);
        vm.assertEq(stateOf(second).settled, 2 * DOLLAR);
        vm.assertEq(stateOf(gone).settled, FEE);
        vm.assertEq(vault(seller), 4 * DOLLAR + FEE);
    }

    function test_AForgedVoucherRevertsTheBatch() public {
        Claim[] memory batch = new Claim[](2);
        batch[0] = claim(c, DOLLAR);
        batch[1] = claim(c, 2 * DOLLAR, STRANGER);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settleBatch(batch);
        vm.assertEq(vault(seller), FEE);
    }
}
