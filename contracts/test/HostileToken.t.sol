// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Channel, OpenAuth, Withdraw} from "../src/TypedData.sol";
import {Authorization, Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {FeeToken, HostileToken, LazyToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

/// A bad token hurts its own ledger only: the dollars of honest accounts never move.
contract HostileTokenTest is Fixture {
    HostileToken internal bad;

    function setUp() public override {
        super.setUp();
        bad = new HostileToken();
        bad.setBalance(stranger, 1_000);
    }

    function test_ATokenThatTakesAFeeIsRefused() public {
        FeeToken fee = new FeeToken();
        fee.mint(address(this), 1_000);
        fee.approve(address(hub), 1_000);
        vm.expectRevert(Vault.TransferMismatch.selector);
        hub.deposit(address(fee), stranger, 1_000);
    }

    function test_ATokenThatMovesNothingIsRefused() public {
        address lazy = address(new LazyToken());
        vm.expectRevert(Vault.TransferMismatch.selector);
        hub.deposit(lazy, stranger, 1_000);
    }

    /// More than was asked for is a lie, too: the hub credits what was signed, or nothing.
    function test_ATokenThatMovesMoreIsRefused() public {
        bad.callBack(address(bad), abi.encodeCall(bad.setBalance, (address(hub), 1)));
        vm.expectRevert(Vault.TransferMismatch.selector);
        vm.prank(stranger);
        hub.deposit(address(bad), stranger, 10);
    }

    function test_AnAddressWithoutCodeIsNoToken() public {
        vm.expectRevert(bytes(""));
        hub.deposit(address(0xdead), stranger, 0);
    }

    /// An authorisation function that brings less than it says.
    function test_AnAuthorizationThatBringsNothingIsRefused() public {
        Authorization memory auth = Authorization({
            from: address(hub), value: 7, validAfter: 0, validBefore: SOON, nonce: 0
        });
        vm.expectRevert(Vault.TransferMismatch.selector);
        hub.depositWithAuthorization(address(bad), auth, "");
    }

    function test_ATokenCannotReEnterTheVault() public {
        Withdraw memory nothing;
        (nothing.account, nothing.token, nothing.validBefore) = (buyer, address(usd), SOON);
        bytes[4] memory calls = [
            abi.encodeCall(hub.deposit, (address(usd), stranger, 0)),
            abi.encodeCall(hub.withdraw, (address(usd), stranger, 0)),
            abi.encodeCall(hub.withdrawBySig, (nothing, signWithdraw(BUYER, nothing))),
            abi.encodeCall(
                hub.depositWithAuthorization,
                (
                    address(bad),
                    Authorization({
                        from: stranger, value: 1, validAfter: 0, validBefore: SOON, nonce: 0
                    }),
                    ""
                )
            )
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            bad.callBack(address(hub), calls[i]);
            vm.prank(stranger);
            hub.deposit(address(bad), stranger, 10);
            refusedInside();

            bad.callBack(address(hub), calls[i]);
            vm.prank(stranger);
            hub.withdraw(address(bad), stranger, 10);
            refusedInside();
        }
    }

    /// The guard is off again after each call, or a multicall could hold one vault call only.
    function test_AMulticallMayUseTheVaultTwice() public {
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(hub.withdraw, (address(usd), stranger, 1));
        calls[1] = abi.encodeCall(hub.withdraw, (address(usd), stranger, 2));
        vm.prank(buyer);
        hub.multicall(calls);
        vm.assertEq(usd.balanceOf(stranger), 3);
    }

    /// Inside the window between a token's transfer and the credit, channels work as always.
    function test_ATokenThatSettlesDuringADepositGainsNothing() public {
        Channel memory c = opened();
        bad.callBack(address(hub), abi.encodeCall(hub.settle, (claim(c, DOLLAR))));
        vm.prank(stranger);
        hub.deposit(address(bad), stranger, 10);
        vm.assertTrue(bad.callSucceeded());
        vm.assertEq(vault(seller), DOLLAR);
        vm.assertEq(vault(buyer), 100 * DOLLAR - DEPOSIT);
        vm.assertEq(hub.balanceOf(address(bad), stranger), 10);
    }

    function test_AChannelOfABrokenTokenStillEnds() public {
        vm.prank(stranger);
        hub.deposit(address(bad), buyer, 100);
        OpenAuth memory auth = openAuth();
        (auth.channel.token, auth.deposit, auth.openFee) = (address(bad), 100, 1);
        hub.open(auth, signOpen(BUYER, auth));
        bad.breakDown();

        hub.settle(claim(auth.channel, 40));
        vm.warp(EXPIRY);
        hub.reclaim(auth.channel);
        vm.assertEq(hub.balanceOf(address(bad), buyer), 60);
        vm.assertEq(hub.balanceOf(address(bad), seller), 40);

        vm.expectRevert(bytes(abi.encodeWithSignature("Error(string)", "broken")));
        vm.prank(buyer);
        hub.withdraw(address(bad), buyer, 60);
        vm.prank(buyer);
        hub.withdraw(address(usd), buyer, 100 * DOLLAR);
        vm.assertEq(usd.balanceOf(buyer), 100 * DOLLAR);
    }

    /// A token that makes up balances fills its own ledger and no other.
    function test_MadeUpMoneyStaysInItsOwnLedger() public {
        bad.setBalance(stranger, type(uint128).max);
        vm.prank(stranger);
        hub.deposit(address(bad), stranger, type(uint128).max);
        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(stranger);
        hub.withdraw(address(usd), stranger, 1);
        vm.assertEq(usd.balanceOf(address(hub)), 100 * DOLLAR);
    }

    function refusedInside() private view {
        vm.assertFalse(bad.callSucceeded());
        vm.assertEq(
            bad.answer(),
            abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector)
        );
    }
}
