// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {Channel, Claim, OpenAuth, Withdraw} from "../src/TypedData.sol";
import {Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {bound, vm} from "./Vm.sol";

contract FuzzTest is Fixture {
    /// Any terms, any vouchers: the seller has max(fee, min(highest, deposit)), never less.
    function testFuzz_TheSellerHasTheHighestVoucherUpToTheDeposit(
        uint96 deposit,
        uint96 fee,
        uint96[8] memory vouchers
    ) public {
        fund(buyer, type(uint96).max);
        OpenAuth memory auth = openAuth();
        auth.deposit = deposit;
        auth.openFee = uint96(bound(fee, 0, deposit));
        hub.open(auth, signOpen(BUYER, auth));

        uint256 due = auth.openFee;
        for (uint256 i = 0; i < vouchers.length; ++i) {
            uint96 paid = hub.settle(claim(auth.channel, vouchers[i]));
            uint256 before = due;
            if (vouchers[i] > due) due = vouchers[i] < deposit ? vouchers[i] : deposit;
            vm.assertEq(paid, due - before);
            vm.assertEq(vault(seller), due);
        }
        uint256 free = vault(buyer);
        close(auth.channel);
        vm.assertEq(vault(seller), due);
        vm.assertEq(vault(buyer) - free, deposit - due);
    }

    /// A batch does what its claims do one after the other, whatever their order.
    function testFuzz_ABatchIsASequence(uint96[10] memory amounts, uint256 order) public {
        Channel[3] memory channels = [opened("a"), opened("b"), opened("c")];
        close(channels[2]);
        Claim[] memory claims = new Claim[](amounts.length);
        for (uint256 i = 0; i < claims.length; ++i) {
            claims[i] = claim(channels[(order >> (8 * i)) % 3], amounts[i] % (2 * DEPOSIT));
        }
        uint256 here = vm.snapshotState();
        hub.settleBatch(claims);
        bytes32 atOnce = outcome(channels);
        vm.revertToState(here);
        for (uint256 i = 0; i < claims.length; ++i) {
            hub.settle(claims[i]);
        }
        vm.assertEq(outcome(channels), atOnce);
    }

    function outcome(Channel[3] memory c) private view returns (bytes32) {
        return keccak256(
            abi.encode(stateOf(c[0]), stateOf(c[1]), stateOf(c[2]), vault(buyer), vault(seller))
        );
    }

    function testFuzz_ARequestMeansAChallengePeriodFromNow(uint40 expiry, uint32 period, uint40 at)
        public
    {
        OpenAuth memory auth = openAuth();
        auth.channel.challengePeriod = uint32(bound(period, 1 hours, 30 days));
        auth.expiry =
            uint40(bound(expiry, NOW + auth.channel.challengePeriod, type(uint40).max - 31 days));
        hub.open(auth, signOpen(BUYER, auth));
        at = uint40(bound(at, NOW, auth.expiry));
        vm.warp(at);
        vm.prank(hot);
        hub.requestClose(auth.channel);
        uint256 due = uint256(at) + auth.channel.challengePeriod;
        vm.assertEq(stateOf(auth.channel).expiry, due < auth.expiry ? due : auth.expiry);
    }

    function testFuzz_WithdrawalsTakeExactlyWhatWasSigned(uint256 amount, uint256 fee) public {
        uint256 all = 100 * DOLLAR;
        Withdraw memory w = withdrawal();
        (w.amount, w.fee) = (bound(amount, 0, 2 * all), bound(fee, 0, 2 * all));
        bytes memory signature = signWithdraw(BUYER, w);
        bool covered = w.amount + w.fee <= all;
        if (!covered) vm.expectRevert(Vault.InsufficientBalance.selector);
        hub.withdrawBySig(w, signature);
        vm.assertEq(vault(buyer), covered ? all - w.amount - w.fee : all);
        vm.assertEq(vault(seller), covered ? w.fee : 0);
        vm.assertEq(usd.balanceOf(buyer), covered ? w.amount : 0);
    }

    function testFuzz_AnOverflowingSumIsNotCovered(uint256 amount, uint256 fee) public {
        Withdraw memory w = withdrawal();
        w.amount = bound(amount, 1, type(uint256).max);
        w.fee = bound(fee, type(uint256).max - w.amount + 1, type(uint256).max);
        bytes memory signature = signWithdraw(BUYER, w);
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", 0x11));
        hub.withdrawBySig(w, signature);
    }

    // ---- one changed word voids a signature --------------------------------------------------

    function testFuzz_OpenAuthCoversEachWord(uint256 word, uint96 value) public {
        OpenAuth memory auth = openAuth();
        bytes memory signature = signOpen(BUYER, auth);
        word = bound(word, 0, 9);
        uint256 small = bound(value, 1, FEE);
        if (word == 0) auth.deposit += uint96(small);
        else if (word == 1) auth.openFee -= uint96(small);
        else if (word == 2) auth.expiry += uint40(small);
        else if (word == 3) auth.validBefore += uint40(small);
        else auth.channel = changed(auth.channel, word - 4, small);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.open(auth, signature);
    }

    function testFuzz_TopUpAuthCoversEachWord(uint256 word, uint96 value) public {
        Channel memory c = opened();
        Channel memory other = opened("other");
        bytes memory signature = signTopUp(BUYER, c, 2 * DEPOSIT, EXPIRY, SOON);
        word = bound(word, 0, 3);
        uint96 small = uint96(bound(value, 1, FEE));
        vm.expectRevert(Vault.BadSignature.selector);
        if (word == 0) hub.topUp(c, 2 * DEPOSIT - small, EXPIRY, SOON, signature);
        else if (word == 1) hub.topUp(c, 2 * DEPOSIT, EXPIRY + uint40(small), SOON, signature);
        else if (word == 2) hub.topUp(c, 2 * DEPOSIT, EXPIRY, SOON + uint40(small), signature);
        else hub.topUp(other, 2 * DEPOSIT, EXPIRY, SOON, signature);
    }

    function testFuzz_AVoucherCoversEachWord(uint256 word, uint96 value) public {
        Channel memory other = opened("other");
        Claim memory k = claim(opened(), DOLLAR);
        word = bound(word, 0, 3);
        if (word == 0) k.cumulative += uint96(bound(value, 1, type(uint96).max - DOLLAR));
        else if (word == 1) k.channel = other;
        else if (word == 2) k.r ^= bytes32(bound(value, 1, type(uint96).max));
        else k.vs ^= bytes32(bound(value, 1, type(uint96).max));
        vm.expectRevert(Vault.BadSignature.selector);
        hub.settle(k);
    }

    function testFuzz_CloseAuthCoversEachWord(uint256 word, uint96 value) public {
        Channel memory c = opened();
        Claim memory k = claim(c, DOLLAR);
        bytes memory signature = signClose(SELLER, c, DOLLAR, SOON);
        word = bound(word, 0, 2);
        uint40 validBefore = SOON;
        if (word == 0) k = claim(c, uint96(bound(value, 0, DOLLAR - 1)));
        else if (word == 1) validBefore += uint40(bound(value, 1, type(uint32).max));
        else k = claim(opened("other"), DOLLAR);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.closeBySig(k, validBefore, signature);
    }

    function testFuzz_RequestCloseCoversEachWord(bool channel_, uint32 later) public {
        Channel memory c = opened();
        Channel memory other = opened("other");
        bytes memory signature = signRequestClose(HOT, c, SOON);
        uint40 validBefore = channel_ ? SOON : SOON + uint40(bound(later, 1, type(uint32).max));
        vm.expectRevert(Vault.BadSignature.selector);
        hub.requestCloseBySig(channel_ ? other : c, validBefore, signature);
    }

    function testFuzz_WithdrawCoversEachWord(uint256 word, uint96 value) public {
        Withdraw memory w = withdrawal();
        bytes memory signature = signWithdraw(BUYER, w);
        word = bound(word, 0, 7);
        uint256 small = bound(value, 1, DOLLAR);
        address other = address(uint160(small) + 1_000);
        if (word == 0) w.account = other;
        else if (word == 1) w.token = other;
        else if (word == 2) w.to = other;
        else if (word == 3) w.amount += small;
        else if (word == 4) w.relayer = other;
        else if (word == 5) w.fee += small;
        else if (word == 6) w.nonce += small;
        else w.validBefore += uint40(small);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.withdrawBySig(w, signature);
    }

    /// The channel with one word changed; the buyer's own word would make it somebody else's.
    function changed(Channel memory c, uint256 word, uint256 by)
        private
        pure
        returns (Channel memory)
    {
        address other = address(uint160(by) + 1_000);
        if (word == 0) c.seller = other;
        else if (word == 1) c.operator = other;
        else if (word == 2) c.token = other;
        else if (word == 3) c.voucherSigner = other;
        else if (word == 4) c.challengePeriod -= uint32(by);
        else c.salt = bytes32(by + 1);
        return c;
    }

    function withdrawal() private view returns (Withdraw memory) {
        return Withdraw({
            account: buyer,
            token: address(usd),
            to: buyer,
            amount: DOLLAR,
            relayer: seller,
            fee: DOLLAR,
            nonce: 7,
            validBefore: SOON
        });
    }
}
