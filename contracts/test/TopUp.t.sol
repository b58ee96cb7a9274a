// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {Channel} from "../src/TypedData.sol";
import {Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";

contract TopUpTest is Fixture {
    Channel internal c;

    function setUp() public override {
        super.setUp();
        c = opened();
    }

    function test_ATopUpRaisesTheDepositAndTheExpiry() public {
        vm.expectEmit(address(hub));
        emit ChannelHub.ChannelToppedUp(hub.channelId(c), 2 * DEPOSIT, EXPIRY + 1);
        topUp(2 * DEPOSIT, EXPIRY + 1);
        ChannelState memory state = stateOf(c);
        vm.assertEq(state.deposit, 2 * DEPOSIT);
        vm.assertEq(state.settled, FEE);
        vm.assertEq(state.expiry, EXPIRY + 1);
        vm.assertEq(vault(buyer), 100 * DOLLAR - 2 * DEPOSIT);
    }

    function test_ATopUpWorksOnce() public {
        topUp(2 * DEPOSIT, EXPIRY);
        refused(2 * DEPOSIT, EXPIRY, ChannelHub.BadAmount.selector);
        refused(2 * DEPOSIT - 1, EXPIRY, ChannelHub.BadAmount.selector);
        topUp(2 * DEPOSIT + 1, EXPIRY);
    }

    function test_ATopUpNeverBringsTheExpiryForward() public {
        refused(2 * DEPOSIT, EXPIRY - 1, ChannelHub.BadExpiry.selector);
    }

    function test_FreshMoneyStaysForAChallengePeriod() public {
        vm.warp(EXPIRY - PERIOD + 1);
        bytes memory signature = signTopUp(BUYER, c, 2 * DEPOSIT, EXPIRY, EXPIRY);
        vm.expectRevert(ChannelHub.BadExpiry.selector);
        hub.topUp(c, 2 * DEPOSIT, EXPIRY, EXPIRY, signature);
        hub.topUp(
            c, 2 * DEPOSIT, EXPIRY + 1, EXPIRY, signTopUp(BUYER, c, 2 * DEPOSIT, EXPIRY + 1, EXPIRY)
        );
        vm.assertEq(stateOf(c).expiry, EXPIRY + 1);
    }

    function test_ATopUpEndsBeforeItsTime() public {
        vm.warp(SOON);
        refused(2 * DEPOSIT, EXPIRY, Vault.AuthExpired.selector);
    }

    function test_TheVaultMustCoverTheDifference() public {
        refused(100 * DOLLAR + 1, EXPIRY, Vault.InsufficientBalance.selector);
        topUp(100 * DOLLAR, EXPIRY);
        vm.assertEq(vault(buyer), 0);
    }

    function test_OnlyTheBuyerTopsUp() public {
        uint256[4] memory keys = [SELLER, OPERATOR, HOT, STRANGER];
        for (uint256 i = 0; i < keys.length; ++i) {
            bytes memory signature = signTopUp(keys[i], c, 2 * DEPOSIT, EXPIRY, SOON);
            vm.expectRevert(Vault.BadSignature.selector);
            hub.topUp(c, 2 * DEPOSIT, EXPIRY, SOON, signature);
        }
    }

    function test_ACloseRequestKillsTopUpsNotUsedYet() public {
        vm.prank(buyer);
        hub.requestClose(c);
        refused(2 * DEPOSIT, EXPIRY, ChannelHub.ChannelEnding.selector);
        vm.assertEq(stateOf(c).expiry, NOW + PERIOD);
    }

    function test_AClosedOrUnknownChannelTakesNoTopUp() public {
        close(c);
        refused(2 * DEPOSIT, EXPIRY, ChannelHub.ChannelEnding.selector);
        c.salt = "other";
        refused(2 * DEPOSIT, EXPIRY, ChannelHub.ChannelUnknown.selector);
    }

    function topUp(uint96 deposit, uint40 expiry) private {
        hub.topUp(c, deposit, expiry, SOON, signTopUp(BUYER, c, deposit, expiry, SOON));
    }

    function refused(uint96 deposit, uint40 expiry, bytes4 reason) private {
        bytes memory signature = signTopUp(BUYER, c, deposit, expiry, SOON);
        vm.expectRevert(reason);
        hub.topUp(c, deposit, expiry, SOON, signature);
    }
}
