// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel} from "../src/TypedData.sol";
import {Market} from "./Market.sol";
import {vm} from "./Vm.sol";

/// What holds after every action of {Market}, and that everybody gets out in the end.
contract InvariantTest {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Market internal market;
    ChannelHub internal hub;

    function setUp() public {
        vm.warp(1_800_000_000);
        market = new Market();
        hub = market.HUB();
    }

    /// forge reads here, and in the next function, what it may call.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(market);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[14] memory actions = [
            Market.deposit.selector,
            Market.depositSigned.selector,
            Market.withdraw.selector,
            Market.withdrawSigned.selector,
            Market.open.selector,
            Market.topUp.selector,
            Market.settle.selector,
            Market.settleBatch.selector,
            Market.close.selector,
            Market.requestClose.selector,
            Market.reclaim.selector,
            Market.replay.selector,
            Market.replayInTime.selector,
            Market.forge.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0].addr = address(market);
        targets[0].selectors = new bytes4[](actions.length + 3);
        for (uint256 i = 0; i < actions.length; ++i) {
            targets[0].selectors[i] = actions[i];
        }
        // Twice as many openings, and time that passes.
        targets[0].selectors[14] = Market.open.selector;
        targets[0].selectors[15] = Market.pass.selector;
        targets[0].selectors[16] = Market.pass.selector;
    }

    function invariant_TheHubIsSound() public view {
        holdsWhatItOwes();
        agreesWithTheBooks();
    }

    /// The hub holds exactly what it owes, per token.
    function holdsWhatItOwes() private view {
        for (uint256 t = 0; t < 2; ++t) {
            TestUSD token = market.tokens(t);
            uint256 owed = 0;
            for (uint256 i = 0; i < 5; ++i) {
                owed += hub.balanceOf(address(token), market.accounts(i));
            }
            for (uint256 i = 0; i < market.bookCount(); ++i) {
                (Channel memory c,) = market.books(i);
                ChannelState memory state = market.stateOf(i);
                if (c.token == address(token)) owed += state.deposit - state.settled;
            }
            vm.assertEq(token.balanceOf(address(hub)), owed, "hub's balance");
        }
    }

    /// Vaults and channels are what plain bookkeeping says.
    function agreesWithTheBooks() private view {
        for (uint256 i = 0; i < 5; ++i) {
            address account = market.accounts(i);
            for (uint256 t = 0; t < 2; ++t) {
                address token = address(market.tokens(t));
                vm.assertEq(hub.balanceOf(token, account), market.vaults(token, account), "vault");
            }
        }
        for (uint256 i = 0; i < market.bookCount(); ++i) {
            (, ChannelState memory book) = market.books(i);
            vm.assertEq(keccak256(abi.encode(market.stateOf(i))), keccak256(abi.encode(book)));
        }
    }

    /// The fuzzer's actions do reach what they are for; an action that never did anything would
    /// make the invariant empty.
    function test_EachActionComesToItsEnd() public {
        for (uint256 i = 0; i < 60; ++i) {
            uint256 r = uint256(keccak256(abi.encode(i)));
            (uint96 amount, uint40 time) = (uint96(r), uint40(r >> 96));
            market.deposit(r, r >> 8, amount);
            market.depositSigned(r >> 16, r >> 24, amount);
            market.open(r >> 32, r >> 40, r >> 48, amount / 2, amount / 4, time);
            market.topUp(r >> 56, amount, time);
            market.settle(r >> 64, amount);
            market.settleBatch([r, r >> 1, r >> 2, r >> 3, r >> 4], [amount, amount, 1, 2, 3]);
            market.forge(r >> 72, amount);
            market.requestClose(r >> 80, r % 2 == 0, r % 3 == 0);
            market.close(r >> 88, amount, r % 2 == 0, r % 3 == 0);
            market.reclaim(r >> 96);
            market.replay(r >> 104);
            market.replayInTime(r >> 112, r >> 120);
            market.withdraw(r >> 128, r >> 136, amount);
            market.withdrawSigned(r >> 144, r >> 152, amount, r >> 160, r >> 168);
            market.pass(r >> 176);
        }
        string[16] memory ends = [
            "deposit",
            "depositSigned",
            "open",
            "topUp",
            "settle",
            "settleBatch",
            "forgery refused",
            "forgery without effect",
            "requestClose",
            "close",
            "reclaim",
            "replay refused",
            "replayed without effect",
            "withdraw",
            "withdrawSigned",
            "pass"
        ];
        for (uint256 i = 0; i < ends.length; ++i) {
            vm.assertGe(market.done(ends[i]), 5, ends[i]);
        }
        agreesWithTheBooks();
    }

    /// At the end all channels expire, everybody withdraws everything, and nothing is left.
    function afterInvariant() public {
        vm.warp(block.timestamp + 1_000 days);
        for (uint256 i = 0; i < market.bookCount(); ++i) {
            (Channel memory c,) = market.books(i);
            hub.reclaim(c);
        }
        for (uint256 t = 0; t < 2; ++t) {
            TestUSD token = market.tokens(t);
            for (uint256 i = 0; i < 5; ++i) {
                address account = market.accounts(i);
                uint256 free = hub.balanceOf(address(token), account);
                uint256 had = token.balanceOf(account);
                vm.prank(account);
                hub.withdraw(address(token), account, free);
                vm.assertEq(token.balanceOf(account) - had, free);
            }
            vm.assertEq(token.balanceOf(address(hub)), 0, "left in the hub");
        }
    }
}
