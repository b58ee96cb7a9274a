// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, Claim, OpenAuth, TypedData, Withdraw} from "../src/TypedData.sol";
import {vm} from "./Vm.sol";

/// @dev halmos' own cheatcodes.
interface Svm {
    function enableSymbolicStorage(address target) external;
    function createBytes(uint256 size, string calldata name) external returns (bytes memory);
}

Svm constant svm = Svm(address(uint160(uint256(keccak256("svm cheat code")))));

/// @title Proofs by halmos: for every stored state, every argument and every time
/// @notice Storage is symbolic, so a proof covers states no test could reach. Each says: if the
/// call succeeds, the money moved like this, and nothing else moved.
contract Proofs {
    ChannelHub internal hub;
    TestUSD internal usd;

    /// What a proof remembers from before the call; `x` is any account in any token.
    struct Before {
        ChannelState state;
        ChannelState other;
        uint256 buyer;
        uint256 seller;
        uint256 x;
    }

    function setUp() public {
        hub = new ChannelHub();
        usd = new TestUSD();
        svm.enableSymbolicStorage(address(hub));
        svm.enableSymbolicStorage(address(usd));
    }

    /// @dev Anybody else, in any token, and any other channel.
    struct Else {
        address token;
        address account;
        bytes32 id;
    }

    // ---- vault -------------------------------------------------------------------------------

    function check_DepositCreditsWhatCameIn(address account, uint256 amount, Else calldata e)
        external
    {
        (uint256 had, uint256 held) = lookAt(account, e);
        uint256 x = hub.balanceOf(e.token, e.account);
        vm.prank(msg.sender);
        hub.deposit(address(usd), account, amount);
        assert(account != address(0));
        assert(hub.balanceOf(address(usd), account) == had + amount);
        assert(usd.balanceOf(address(hub)) == held + amount);
        assert(hub.balanceOf(e.token, e.account) == x);
    }

    function check_WithdrawIsTheOwners(address to, uint256 amount, Else calldata e) external {
        (uint256 had, uint256 held) = lookAt(msg.sender, e);
        uint256 x = hub.balanceOf(e.token, e.account);
        vm.prank(msg.sender);
        hub.withdraw(address(usd), to, amount);
        assert(hub.balanceOf(address(usd), msg.sender) + amount == had);
        assert(usd.balanceOf(address(hub)) + amount == held);
        assert(hub.balanceOf(e.token, e.account) == x);
    }

    function check_WithdrawBySigIsTheOwnersAndOnce(Withdraw calldata w, Else calldata e) external {
        vm.assume(w.token == address(usd) && w.relayer != w.account && w.relayer != address(0));
        (uint256 had, uint256 held) = lookAt(w.account, e);
        vm.assume(e.token != w.token || e.account != w.relayer);
        uint256 x = hub.balanceOf(e.token, e.account);
        uint256 relayer = hub.balanceOf(w.token, w.relayer);
        vm.assume(relayer < 2 ** 200);
        uint256 used = hub.usedNonces(w.account, w.nonce / 256) >> (w.nonce % 256);
        bytes memory signature = svm.createBytes(65, "signature");
        hub.withdrawBySig(w, signature);
        assert(block.timestamp < w.validBefore && used & 1 == 0);
        assert((hub.usedNonces(w.account, w.nonce / 256) >> (w.nonce % 256)) & 1 == 1);
        assert(hub.balanceOf(w.token, w.account) + w.amount + w.fee == had);
        assert(hub.balanceOf(w.token, w.relayer) == relayer + w.fee);
        assert(usd.balanceOf(address(hub)) + w.amount == held);
        assert(hub.balanceOf(e.token, e.account) == x);
        assert(
            signer(keccak256(abi.encode(TypedData.WITHDRAW_TYPEHASH, w)), signature) == w.account
        );
    }

    function lookAt(address account, Else calldata e)
        private
        view
        returns (uint256 had, uint256 held)
    {
        vm.assume(e.token != address(usd) || e.account != account);
        (had, held) = (hub.balanceOf(address(usd), account), usd.balanceOf(address(hub)));
        vm.assume(had < 2 ** 200 && held < 2 ** 200);
    }

    // ---- channels ----------------------------------------------------------------------------

    function check_OpenMovesTheDepositOnce(OpenAuth calldata auth, Else calldata e) external {
        Channel calldata c = auth.channel;
        Before memory b = look(c, e);
        bytes memory signature = svm.createBytes(65, "signature");
        hub.open(auth, signature);

        ChannelState memory s = stateOf(c);
        assert(b.state.expiry == 0 && s.expiry != 0);
        assert(s.deposit == auth.deposit && s.settled == auth.openFee && s.expiry == auth.expiry);
        assert(!s.closing && !s.closed);
        assert(s.expiry >= block.timestamp + c.challengePeriod);
        assert(block.timestamp < auth.validBefore);
        assert(c.seller != address(0) && c.voucherSigner != address(0));
        assert(c.challengePeriod >= 1 hours && c.challengePeriod <= 30 days);
        moved(c, e, b, -int256(uint256(auth.deposit)), auth.openFee);

        bytes32 channelHash = keccak256(abi.encode(TypedData.CHANNEL_TYPEHASH, c));
        assert(
            signer(
                keccak256(
                    abi.encode(
                        TypedData.OPEN_TYPEHASH,
                        channelHash,
                        auth.deposit,
                        auth.openFee,
                        auth.expiry,
                        auth.validBefore
                    )
                ),
                signature
            ) == c.buyer
        );
    }

    function check_TopUpAddsToALivingChannel(
        Channel calldata c,
        uint96 deposit,
        uint40 expiry,
        uint40 validBefore,
        Else calldata e
    ) external {
        Before memory b = look(c, e);
        bytes memory signature = svm.createBytes(65, "signature");
        hub.topUp(c, deposit, expiry, validBefore, signature);

        ChannelState memory s = stateOf(c);
        assert(!b.state.closing && !b.state.closed && b.state.expiry != 0);
        assert(!s.closing && !s.closed);
        assert(s.deposit == deposit && deposit > b.state.deposit && s.settled == b.state.settled);
        assert(s.expiry == expiry && expiry >= b.state.expiry);
        assert(expiry >= block.timestamp + c.challengePeriod && block.timestamp < validBefore);
        moved(c, e, b, int256(uint256(b.state.deposit)) - int256(uint256(deposit)), 0);
        bytes32 id = hub.channelId(c);
        bytes32 auth =
            keccak256(abi.encode(TypedData.TOP_UP_TYPEHASH, id, deposit, expiry, validBefore));
        assert(signer(auth, signature) == c.buyer);
    }

    function check_SettlePaysTheSellerUpToTheDeposit(Claim calldata k, Else calldata e) external {
        Before memory b = look(k.channel, e);
        uint96 paid = hub.settle(k);

        ChannelState memory s = stateOf(k.channel);
        assert(s.settled == due(b.state, k.cumulative) && paid == s.settled - b.state.settled);
        assert(s.deposit == b.state.deposit && s.expiry == b.state.expiry);
        assert(s.closing == b.state.closing && s.closed == b.state.closed);
        moved(k.channel, e, b, 0, paid);
        if (paid != 0) assert(recovered(k) == k.channel.voucherSigner);
    }

    /// A batch of two vouchers of a channel pays what the two pay one after the other.
    function check_ABatchOnOneChannelIsASequence(
        uint96[2] calldata cumulative,
        bytes32[2] calldata r,
        bytes32[2] calldata vs
    ) external {
        Channel memory c = Channel(
            address(1), address(2), address(3), address(usd), address(5), 1 days, "salt"
        );
        ChannelState memory s = stateOf(c);
        vm.assume(s.settled <= s.deposit);
        Claim[] memory batch = new Claim[](2);
        batch[0] = Claim(c, cumulative[0], r[0], vs[0]);
        batch[1] = Claim(c, cumulative[1], r[1], vs[1]);
        hub.settleBatch(batch);
        s.settled = due(s, cumulative[0]);
        assert(stateOf(c).settled == due(s, cumulative[1]));
    }

    /// The same for any two channels; takes minutes, so only `deep` runs it.
    function deep_ABatchIsASequence(Claim calldata k, Claim calldata l) external {
        ChannelState memory s = stateOf(k.channel);
        ChannelState memory t = stateOf(l.channel);
        vm.assume(s.settled <= s.deposit && t.settled <= t.deposit);
        Claim[] memory batch = new Claim[](2);
        (batch[0], batch[1]) = (k, l);
        hub.settleBatch(batch);

        s.settled = due(s, k.cumulative);
        bool same = hub.channelId(k.channel) == hub.channelId(l.channel);
        t.settled = due(same ? s : t, l.cumulative);
        assert(stateOf(l.channel).settled == t.settled);
        if (!same) assert(stateOf(k.channel).settled == s.settled);
    }

    function check_CloseSplitsTheDeposit(Claim calldata k, Else calldata e) external {
        Before memory b = look(k.channel, e);
        vm.prank(msg.sender);
        hub.close(k);
        assert(msg.sender == k.channel.seller || msg.sender == k.channel.operator);
        ended(k, e, b);
    }

    function check_CloseBySigSplitsTheDeposit(Claim calldata k, uint40 validBefore, Else calldata e)
        external
    {
        Before memory b = look(k.channel, e);
        bytes memory signature = svm.createBytes(65, "signature");
        hub.closeBySig(k, validBefore, signature);
        assert(block.timestamp < validBefore);
        bytes32 id = hub.channelId(k.channel);
        address by = signer(
            keccak256(abi.encode(TypedData.CLOSE_TYPEHASH, id, k.cumulative, validBefore)),
            signature
        );
        assert(by == k.channel.seller || (by == k.channel.operator && by != address(0)));
        ended(k, e, b);
    }

    function check_ReclaimWaitsAndReturnsTheRest(Channel calldata c, Else calldata e) external {
        Before memory b = look(c, e);
        hub.reclaim(c);
        assert(block.timestamp >= b.state.expiry);
        Claim memory none;
        none.channel = c;
        ended(none, e, b);
    }

    /// After the expiry nothing can stop it: no stored state, no token, no caller.
    function check_ReclaimAlwaysWorks(Channel calldata c, Else calldata e) external {
        Before memory b = look(c, e);
        vm.assume(b.state.expiry != 0 && block.timestamp >= b.state.expiry);
        vm.prank(msg.sender);
        (bool ok,) = address(hub).call(abi.encodeCall(hub.reclaim, (c)));
        assert(ok);
    }

    function check_RequestCloseLeavesAChallengePeriod(Channel calldata c, Else calldata e)
        external
    {
        Before memory b = look(c, e);
        vm.assume(block.timestamp < 2 ** 39);
        vm.prank(msg.sender);
        hub.requestClose(c);
        assert(msg.sender == c.buyer || msg.sender == c.voucherSigner);
        asked(c, e, b);
    }

    function check_RequestCloseBySigLeavesAChallengePeriod(
        Channel calldata c,
        uint40 validBefore,
        Else calldata e
    ) external {
        Before memory b = look(c, e);
        vm.assume(block.timestamp < 2 ** 39);
        bytes memory signature = svm.createBytes(65, "signature");
        hub.requestCloseBySig(c, validBefore, signature);
        assert(block.timestamp < validBefore);
        bytes32 id = hub.channelId(c);
        address by = signer(
            keccak256(abi.encode(TypedData.REQUEST_CLOSE_TYPEHASH, id, validBefore)), signature
        );
        assert(by == c.buyer || by == c.voucherSigner);
        asked(c, e, b);
    }

    // ---- what the proofs share ---------------------------------------------------------------

    function due(ChannelState memory s, uint96 cumulative) private pure returns (uint96) {
        uint96 most = cumulative < s.deposit ? cumulative : s.deposit;
        return most > s.settled ? most : s.settled;
    }

    function asked(Channel memory c, Else calldata e, Before memory b) private view {
        ChannelState memory s = stateOf(c);
        uint256 soonest = block.timestamp + c.challengePeriod;
        bool first = !b.state.closing && !b.state.closed;
        assert(s.expiry == (first && soonest < b.state.expiry ? soonest : b.state.expiry));
        assert(s.closing == (b.state.closing || first));
        assert(s.deposit == b.state.deposit && s.settled == b.state.settled);
        assert(s.closed == b.state.closed);
        moved(c, e, b, 0, 0);
    }

    function ended(Claim memory k, Else calldata e, Before memory b) private view {
        ChannelState memory s = stateOf(k.channel);
        assert(s.closed && s.expiry == b.state.expiry && s.expiry != 0);
        // On a closed channel the deposit is what was settled, so nothing moves.
        uint96 settled = b.state.closed ? b.state.settled : due(b.state, k.cumulative);
        assert(s.settled == settled && s.deposit == settled);
        int256 rest = int256(uint256(b.state.deposit - settled));
        moved(k.channel, e, b, rest, settled - b.state.settled);
    }

    function look(Channel memory c, Else calldata e) private view returns (Before memory b) {
        b.state = stateOf(c);
        // True at the start and kept by each function, as `moved` and check_Open show.
        vm.assume(b.state.settled <= b.state.deposit);
        vm.assume(!b.state.closed || b.state.settled == b.state.deposit);
        vm.assume(b.state.expiry != 0 || b.state.deposit == 0);
        vm.assume(b.state.expiry == 0 || c.voucherSigner != address(0));
        b.other = hub.stateOf(e.id);
        b.buyer = hub.balanceOf(c.token, c.buyer);
        b.seller = hub.balanceOf(c.token, c.seller);
        b.x = hub.balanceOf(e.token, e.account);
        // More than any token has; so sums do not overflow.
        vm.assume(b.buyer < 2 ** 200 && b.seller < 2 ** 200);
        vm.assume(c.buyer != c.seller);
        vm.assume(e.id != hub.channelId(c));
        vm.assume(e.token != c.token || (e.account != c.buyer && e.account != c.seller));
    }

    function moved(
        Channel memory c,
        Else calldata e,
        Before memory b,
        int256 toBuyer,
        uint256 toSeller
    ) private view {
        assert(int256(hub.balanceOf(c.token, c.buyer)) == int256(b.buyer) + toBuyer);
        assert(hub.balanceOf(c.token, c.seller) == b.seller + toSeller);
        assert(hub.balanceOf(e.token, e.account) == b.x);
        assert(keccak256(abi.encode(hub.stateOf(e.id))) == keccak256(abi.encode(b.other)));
        ChannelState memory s = stateOf(c);
        assert(s.settled <= s.deposit);
        assert(!s.closed || s.settled == s.deposit);
        assert(s.expiry != 0 || s.deposit == 0);
    }

    function stateOf(Channel memory c) private view returns (ChannelState memory) {
        return hub.stateOf(hub.channelId(c));
    }

    function recovered(Claim calldata k) private view returns (address) {
        bytes32 id = hub.channelId(k.channel);
        bytes32 structHash = keccak256(abi.encode(TypedData.VOUCHER_TYPEHASH, id, k.cumulative));
        uint8 v = 27 + uint8(uint256(k.vs) >> 255);
        bytes32 s = k.vs & bytes32(uint256(type(int256).max));
        return ecrecover(digest(structHash), v, k.r, s);
    }

    /// @dev No account here is a wallet, so a valid signature is an ECDSA one.
    function signer(bytes32 structHash, bytes memory signature) private view returns (address) {
        (bytes32 r, bytes32 s, uint8 v) = (0, 0, uint8(signature[64]));
        assembly {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        return ecrecover(digest(structHash), v, r, s);
    }

    function digest(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", hub.domainSeparator(), structHash));
    }
}
