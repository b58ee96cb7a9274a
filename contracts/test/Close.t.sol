// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {Channel, Claim, OpenAuth} from "../src/TypedData.sol";
import {Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Wallet} from "./Wallet.sol";

contract CloseTest is Fixture {
    Channel internal c;

    function setUp() public override {
        super.setUp();
        c = opened();
    }

    // ---- close by the seller -----------------------------------------------------------------

    function test_TheSellerClosesWithItsLastVoucher() public {
        bytes32 id = hub.channelId(c);
        Claim memory last = claim(c, 2 * DOLLAR);
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelSettled(id, 2 * DOLLAR, 2 * DOLLAR - FEE);
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelClosed(id, 2 * DOLLAR, 3 * DOLLAR);
        vm.prank(seller);
        hub.close(last);
        isClosedAt(2 * DOLLAR);
    }

    function test_TheOperatorMayClose() public {
        Claim memory last = claim(c, 2 * DOLLAR);
        vm.prank(operator);
        hub.close(last);
        isClosedAt(2 * DOLLAR);
    }

    function test_NobodyElseMayClose() public {
        Claim memory last = claim(c, 2 * DOLLAR);
        address[4] memory others = [buyer, hot, stranger, address(0)];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.expectRevert(ChannelHub.NotAllowed.selector);
            vm.prank(others[i]);
            hub.close(last);
        }
    }

    function test_ClosingNeedsNoVoucher() public {
        Claim memory none;
        none.channel = c;
        vm.prank(operator);
        hub.close(none);
        isClosedAt(FEE);
    }

    function test_ClosingWithAForgedVoucherFails() public {
        Claim memory forged = claim(c, DOLLAR, SELLER);
        vm.expectRevert(Vault.BadSignature.selector);
        vm.prank(seller);
        hub.close(forged);
    }

    function test_ClosingWithAnOldVoucherKeepsWhatWasSettled() public {
        hub.settle(claim(c, 2 * DOLLAR));
        Claim memory old = claim(c, DOLLAR);
        vm.prank(seller);
        hub.close(old);
        isClosedAt(2 * DOLLAR);
    }

    function test_AFullyUsedChannelCloses() public {
        Claim memory all = claim(c, DEPOSIT);
        vm.prank(seller);
        hub.close(all);
        isClosedAt(DEPOSIT);
    }

    function test_ClosingTwiceDoesNothing() public {
        Claim memory last = claim(c, DOLLAR);
        Claim memory more = claim(c, 2 * DOLLAR);
        vm.prank(seller);
        hub.close(last);
        vm.recordLogs();
        vm.prank(seller);
        hub.close(more);
        hub.closeBySig(more, SOON, signClose(SELLER, c, 2 * DOLLAR, SOON));
        hub.requestCloseBySig(c, SOON, signRequestClose(HOT, c, SOON));
        vm.warp(EXPIRY);
        hub.reclaim(c);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        isClosedAt(DOLLAR);
    }

    function test_AnUnknownChannelDoesNotClose() public {
        c.salt = "other";
        Claim memory none = claim(c, 0);
        vm.expectRevert(ChannelHub.ChannelUnknown.selector);
        vm.prank(seller);
        hub.close(none);
    }

    // ---- close by signature ------------------------------------------------------------------

    function test_AnyoneClosesWithTheSellersAgreement() public {
        hub.closeBySig(claim(c, 2 * DOLLAR), SOON, signClose(SELLER, c, 2 * DOLLAR, SOON));
        isClosedAt(2 * DOLLAR);
    }

    function test_AnyoneClosesWithTheOperatorsAgreement() public {
        hub.closeBySig(claim(c, 2 * DOLLAR), SOON, signClose(OPERATOR, c, 2 * DOLLAR, SOON));
        isClosedAt(2 * DOLLAR);
    }

    function test_AContractWalletSellerAgreesByItsOwnRules() public {
        vm.etch(seller, address(new Wallet(stranger)).code);
        bytes memory signature = signClose(BUYER, c, DOLLAR, SOON);
        Claim memory last = claim(c, DOLLAR);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(last, SOON, signature);
        hub.closeBySig(last, SOON, signClose(STRANGER, c, DOLLAR, SOON));
        isClosedAt(DOLLAR);
    }

    function test_NobodyElseAgreesForTheSeller() public {
        uint256[3] memory keys = [BUYER, HOT, STRANGER];
        Claim memory last = claim(c, DOLLAR);
        for (uint256 i = 0; i < keys.length; ++i) {
            bytes memory signature = signClose(keys[i], c, DOLLAR, SOON);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.closeBySig(last, SOON, signature);
        }
    }

    function test_AnAgreementIsForItsAmount() public {
        bytes memory signature = signClose(SELLER, c, 2 * DOLLAR, SOON);
        Claim memory less = claim(c, DOLLAR);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(less, SOON, signature);
    }

    function test_AnAgreementNeedsTheVoucherToo() public {
        bytes memory signature = signClose(SELLER, c, 2 * DOLLAR, SOON);
        Claim memory none = claim(c, 2 * DOLLAR, BUYER);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(none, SOON, signature);
    }

    function test_WhatWasSettledAfterTheAgreementStands() public {
        bytes memory signature = signClose(SELLER, c, DOLLAR, SOON);
        hub.settle(claim(c, 2 * DOLLAR));
        hub.closeBySig(claim(c, DOLLAR), SOON, signature);
        isClosedAt(2 * DOLLAR);
    }

    function test_AnAgreementEndsBeforeItsTime() public {
        bytes memory signature = signClose(SELLER, c, DOLLAR, SOON);
        Claim memory last = claim(c, DOLLAR);
        vm.warp(SOON);
        vm.expectRevert(Vault.AuthExpired.selector);
        hub.closeBySig(last, SOON, signature);
    }

    /// A failed recovery gives address zero, which must not pass for the missing operator.
    function test_WithoutAnOperatorNobodyIsTheOperator() public {
        OpenAuth memory auth = openAuth();
        auth.channel.operator = address(0);
        hub.open(auth, signOpen(BUYER, auth));
        Claim memory none;
        none.channel = auth.channel;
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(none, SOON, new bytes(65));
    }

    // ---- close without the seller ------------------------------------------------------------

    function test_TheBuyerOrItsVoucherSignerRequestsTheEnd() public {
        address[2] memory allowed = [buyer, hot];
        for (uint256 i = 0; i < allowed.length; ++i) {
            Channel memory d = opened(bytes32(i + 100));
            vm.expectEmit(address(hub));
            emit ChannelHub.CloseRequested(hub.channelId(d), NOW + PERIOD);
            vm.prank(allowed[i]);
            hub.requestClose(d);
            vm.assertEq(stateOf(d).expiry, NOW + PERIOD);
            vm.assertTrue(stateOf(d).closing);
        }
    }

    function test_NobodyElseRequestsTheEnd() public {
        uint256[3] memory keys = [SELLER, OPERATOR, STRANGER];
        for (uint256 i = 0; i < keys.length; ++i) {
            bytes memory signature = signRequestClose(keys[i], c, SOON);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.requestCloseBySig(c, SOON, signature);
            vm.expectRevert(ChannelHub.NotAllowed.selector);
            vm.prank(vm.addr(keys[i]));
            hub.requestClose(c);
        }
    }

    function test_ASignedRequestWorksForBothKeys() public {
        Channel memory d = opened("d");
        hub.requestCloseBySig(c, SOON, signRequestClose(BUYER, c, SOON));
        hub.requestCloseBySig(d, SOON, signRequestClose(HOT, d, SOON));
        vm.assertEq(stateOf(c).expiry, NOW + PERIOD);
        vm.assertEq(stateOf(d).expiry, NOW + PERIOD);
    }

    function test_ASignedRequestEndsBeforeItsTime() public {
        bytes memory signature = signRequestClose(HOT, c, SOON);
        vm.warp(SOON);
        vm.expectRevert(Vault.AuthExpired.selector);
        hub.requestCloseBySig(c, SOON, signature);
    }

    function test_AskingTwiceDoesNotMoveTheExpiry() public {
        hub.requestCloseBySig(c, SOON, signRequestClose(HOT, c, SOON));
        vm.warp(NOW + 60);
        vm.recordLogs();
        hub.requestCloseBySig(c, SOON, signRequestClose(HOT, c, SOON));
        vm.prank(buyer);
        hub.requestClose(c);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(stateOf(c).expiry, NOW + PERIOD);
    }

    function test_ARequestNeverPutsTheExpiryOff() public {
        vm.warp(EXPIRY - 1);
        vm.prank(buyer);
        hub.requestClose(c);
        vm.assertEq(stateOf(c).expiry, EXPIRY);
        vm.assertTrue(stateOf(c).closing);
    }

    function test_AnUnknownChannelCannotBeAskedToEnd() public {
        c.salt = "other";
        vm.expectRevert(ChannelHub.ChannelUnknown.selector);
        vm.prank(buyer);
        hub.requestClose(c);
        vm.expectRevert(ChannelHub.ChannelUnknown.selector);
        hub.reclaim(c);
    }

    function test_ReclaimWaitsForTheExpiry() public {
        vm.warp(EXPIRY - 1);
        vm.expectRevert(ChannelHub.NotExpired.selector);
        hub.reclaim(c);
        vm.warp(EXPIRY);
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelClosed(hub.channelId(c), FEE, DEPOSIT - FEE);
        vm.prank(stranger);
        hub.reclaim(c);
        isClosedAt(FEE);
    }

    function test_AfterARequestReclaimWaitsForTheChallengePeriod() public {
        vm.prank(hot);
        hub.requestClose(c);
        vm.warp(NOW + PERIOD - 1);
        vm.expectRevert(ChannelHub.NotExpired.selector);
        hub.reclaim(c);
        hub.settle(claim(c, DOLLAR));
        vm.warp(NOW + PERIOD);
        hub.reclaim(c);
        isClosedAt(DOLLAR);
    }

    /// What the seller has got, what the buyer has back, and the tombstone.
    function isClosedAt(uint96 settled) private view {
        ChannelState memory state = stateOf(c);
        vm.assertTrue(state.closed);
        vm.assertEq(state.settled, settled);
        vm.assertEq(state.deposit, settled);
        vm.assertTrue(state.expiry != 0);
        vm.assertEq(vault(seller), settled);
        vm.assertEq(vault(buyer), 100 * DOLLAR - settled);
    }
}
