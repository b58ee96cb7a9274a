// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, Claim, OpenAuth, Withdraw} from "../src/TypedData.sol";
import {Authorization} from "../src/Vault.sol";
import {Pen} from "./Pen.sol";
import {bound, vm} from "./Vm.sol";
import {Wallet} from "./Wallet.sol";

/// @title Random people on one hub, and a second, plain bookkeeping of what must come out
/// @notice Five accounts (the last is a contract wallet) buy and sell in two tokens; each is
/// anybody's seller, also its own. An action never reverts unless it says so; the fuzzer fails
/// the run when one does.
contract Market is Pen {
    uint256 internal constant ACCOUNTS = 5;
    uint256 internal constant HOT = 0x407;
    uint256 internal constant OPERATOR = 0x09;
    uint256 internal constant NOBODY = 0x666;
    uint96 internal constant MOST = 1_000e6;

    struct Book {
        Channel channel;
        ChannelState state;
    }

    ChannelHub public immutable HUB;
    TestUSD[2] public tokens;
    address[ACCOUNTS] public accounts;
    Book[] public books;
    mapping(address token => mapping(address account => uint256)) public vaults;

    /// Calls with signatures that have done their work; none may ever do anything again.
    bytes[] internal spent;
    uint256 internal salts;
    /// Money and channels before the action under way.
    bytes internal before;
    /// How often each action changed something, so that a test can see that they all do.
    mapping(string action => uint256) public done;

    constructor() {
        hub = new ChannelHub();
        HUB = hub;
        tokens = [new TestUSD(), new TestUSD()];
        for (uint256 i = 0; i < ACCOUNTS - 1; ++i) {
            accounts[i] = vm.addr(key(i));
        }
        accounts[ACCOUNTS - 1] = address(new Wallet(vm.addr(key(ACCOUNTS - 1))));
        for (uint256 i = 0; i < ACCOUNTS; ++i) {
            deposit(i, i, MOST);
        }
    }

    // ---- what holds for each action ----------------------------------------------------------

    /// @dev Only `owner`'s vaults may shrink; no channel pays back, comes alive again, or ends
    /// sooner than a challenge period from now.
    modifier watched(address owner) {
        before = abi.encode(owner, allMoney(), allStates());
        _;
        compare();
    }

    function compare() private view {
        (address owner, uint256[ACCOUNTS][2] memory money, ChannelState[] memory states) =
            abi.decode(before, (address, uint256[5][2], ChannelState[]));
        uint256[ACCOUNTS][2] memory moneyNow = allMoney();
        for (uint256 i = 0; i < ACCOUNTS; ++i) {
            if (accounts[i] == owner) continue;
            vm.assertGe(moneyNow[0][i], money[0][i], "a vault lost money without its owner");
            vm.assertGe(moneyNow[1][i], money[1][i], "a vault lost money without its owner");
        }
        for (uint256 i = 0; i < states.length; ++i) {
            (ChannelState memory was, ChannelState memory is_) = (states[i], stateOf(i));
            uint256 soonest = block.timestamp + books[i].channel.challengePeriod;
            if (was.expiry < soonest) soonest = was.expiry;
            vm.assertGe(is_.settled, was.settled, "a seller lost money");
            vm.assertLe(is_.settled, is_.deposit, "a seller got too much");
            vm.assertGe(is_.expiry, soonest, "a channel ends too soon");
            vm.assertTrue(is_.closed || !was.closed, "a channel opened again");
            vm.assertTrue(is_.closing || !was.closing, "a close request was undone");
        }
    }

    // ---- vault -------------------------------------------------------------------------------

    function deposit(uint256 who, uint256 what, uint96 amount) public watched(address(0)) {
        (address account, TestUSD token) = (accounts[who % ACCOUNTS], tokens[what % 2]);
        amount %= MOST + 1;
        token.mint(address(this), amount);
        token.approve(address(hub), amount);
        hub.deposit(address(token), account, amount);
        vaults[address(token)][account] += amount;
        done["deposit"]++;
    }

    function depositSigned(uint256 who, uint256 what, uint96 amount) external watched(address(0)) {
        (address account, TestUSD token) = (accounts[who % ACCOUNTS], tokens[what % 2]);
        amount %= MOST + 1;
        token.mint(account, amount);
        Authorization memory auth = Authorization({
            from: account,
            value: amount,
            validAfter: 0,
            validBefore: block.timestamp + 1,
            nonce: bytes32(salts++)
        });
        bytes memory signature = signAuthorization(key(who), token, auth);
        submit(abi.encodeCall(hub.depositWithAuthorization, (address(token), auth, signature)));
        vaults[address(token)][account] += amount;
        done["depositSigned"]++;
    }

    function withdraw(uint256 who, uint256 what, uint256 amount)
        external
        watched(accounts[who % ACCOUNTS])
    {
        (address account, TestUSD token) = (accounts[who % ACCOUNTS], tokens[what % 2]);
        amount = bound(amount, 0, vaults[address(token)][account]);
        vm.prank(account);
        hub.withdraw(address(token), account, amount);
        vaults[address(token)][account] -= amount;
        done["withdraw"]++;
    }

    function withdrawSigned(uint256 who, uint256 what, uint256 amount, uint256 fee, uint256 whom)
        external
        watched(accounts[who % ACCOUNTS])
    {
        Withdraw memory auth;
        (auth.account, auth.token) = (accounts[who % ACCOUNTS], address(tokens[what % 2]));
        (auth.to, auth.relayer) = (auth.account, accounts[whom % ACCOUNTS]);
        auth.fee = bound(fee, 0, vaults[auth.token][auth.account]);
        auth.amount = bound(amount, 0, vaults[auth.token][auth.account] - auth.fee);
        (auth.nonce, auth.validBefore) = (salts++, uint40(block.timestamp + 1));
        submit(abi.encodeCall(hub.withdrawBySig, (auth, signWithdraw(key(who), auth))));
        vaults[auth.token][auth.account] -= auth.amount + auth.fee;
        vaults[auth.token][auth.relayer] += auth.fee;
        done["withdrawSigned"]++;
    }

    // ---- channels ----------------------------------------------------------------------------

    function open(uint256 who, uint256 whom, uint256 what, uint96 amount, uint96 fee, uint40 life)
        external
        watched(accounts[who % ACCOUNTS])
    {
        OpenAuth memory auth;
        auth.channel = Channel({
            buyer: accounts[who % ACCOUNTS],
            seller: accounts[whom % ACCOUNTS],
            operator: whom % 3 == 0 ? address(0) : vm.addr(OPERATOR),
            token: address(tokens[what % 2]),
            voucherSigner: vm.addr(HOT),
            challengePeriod: uint32(bound(life, 1 hours, 30 days)),
            salt: bytes32(salts++)
        });
        address token = auth.channel.token;
        auth.deposit = uint96(bound(amount, 0, vaults[token][auth.channel.buyer]));
        auth.openFee = uint96(bound(fee, 0, auth.deposit));
        auth.expiry =
            uint40(block.timestamp + auth.channel.challengePeriod + bound(life, 0, 90 days));
        auth.validBefore = uint40(block.timestamp + 1);
        submit(abi.encodeCall(hub.open, (auth, signOpen(key(who), auth))));

        vaults[token][auth.channel.buyer] -= auth.deposit;
        vaults[token][auth.channel.seller] += auth.openFee;
        books.push();
        Book storage book = books[books.length - 1];
        book.channel = auth.channel;
        (book.state.deposit, book.state.settled) = (auth.deposit, auth.openFee);
        book.state.expiry = auth.expiry;
        done["open"]++;
    }

    function topUp(uint256 which, uint96 more, uint40 longer) external watched(buyerOf(which)) {
        if (books.length == 0) return;
        Book storage book = books[which % books.length];
        uint256 free = vaults[book.channel.token][book.channel.buyer];
        if (free == 0 || book.state.closing || book.state.closed) return;
        uint96 amount = book.state.deposit + uint96(bound(more, 1, free));
        uint256 soonest = block.timestamp + book.channel.challengePeriod;
        if (soonest < book.state.expiry) soonest = book.state.expiry;
        uint40 expiry = uint40(soonest + bound(longer, 0, 90 days));
        uint40 validBefore = uint40(block.timestamp + 1);
        bytes memory signature =
            signTopUp(keyOf(book.channel.buyer), book.channel, amount, expiry, validBefore);
        submit(abi.encodeCall(hub.topUp, (book.channel, amount, expiry, validBefore, signature)));
        vaults[book.channel.token][book.channel.buyer] -= amount - book.state.deposit;
        (book.state.deposit, book.state.expiry) = (amount, expiry);
        done["topUp"]++;
    }

    function settle(uint256 which, uint96 cumulative) external watched(address(0)) {
        if (books.length == 0) return;
        hub.settle(voucher(which, cumulative));
        if (bookSettlement(which, cumulative)) done["settle"]++;
    }

    function settleBatch(uint256[5] memory which, uint96[5] memory cumulative)
        external
        watched(address(0))
    {
        if (books.length == 0) return;
        Claim[] memory claims = new Claim[](5);
        for (uint256 i = 0; i < 5; ++i) {
            claims[i] = voucher(which[i], cumulative[i]);
        }
        hub.settleBatch(claims);
        for (uint256 i = 0; i < 5; ++i) {
            if (bookSettlement(which[i], cumulative[i])) done["settleBatch"]++;
        }
    }

    function close(uint256 which, uint96 cumulative, bool byOperator, bool signed)
        external
        watched(address(0))
    {
        if (books.length == 0) return;
        Channel memory c = books[which % books.length].channel;
        Claim memory last = voucher(which, cumulative);
        if (c.operator == address(0)) byOperator = false;
        if (signed) {
            uint256 pen = byOperator ? OPERATOR : keyOf(c.seller);
            uint40 validBefore = uint40(block.timestamp + 1);
            bytes memory signature = signClose(pen, c, last.cumulative, validBefore);
            submit(abi.encodeCall(hub.closeBySig, (last, validBefore, signature)));
        } else {
            vm.prank(byOperator ? c.operator : c.seller);
            hub.close(last);
        }
        bookSettlement(which, cumulative);
        if (bookEnd(which)) done["close"]++;
    }

    function requestClose(uint256 which, bool byOwner, bool signed) external watched(address(0)) {
        if (books.length == 0) return;
        Book storage book = books[which % books.length];
        Channel memory c = book.channel;
        if (signed) {
            uint40 validBefore = uint40(block.timestamp + 1);
            bytes memory signature =
                signRequestClose(byOwner ? keyOf(c.buyer) : HOT, c, validBefore);
            submit(abi.encodeCall(hub.requestCloseBySig, (c, validBefore, signature)));
        } else {
            vm.prank(byOwner ? c.buyer : c.voucherSigner);
            hub.requestClose(c);
        }
        if (book.state.closing || book.state.closed) return;
        done["requestClose"]++;
        uint40 expiry = uint40(block.timestamp + c.challengePeriod);
        if (expiry < book.state.expiry) book.state.expiry = expiry;
        book.state.closing = true;
    }

    function reclaim(uint256 which) external watched(address(0)) {
        if (books.length == 0) return;
        Book storage book = books[which % books.length];
        if (block.timestamp < book.state.expiry) {
            vm.expectRevert(ChannelHub.NotExpired.selector);
            hub.reclaim(book.channel);
            return;
        }
        hub.reclaim(book.channel);
        if (bookEnd(which)) done["reclaim"]++;
    }

    // ---- what must do nothing ----------------------------------------------------------------

    /// A used signature comes again; the bookkeeping notices if it has any effect.
    function replay(uint256 which) external watched(address(0)) {
        if (spent.length == 0) return;
        (bool ok,) = address(hub).call(spent[which % spent.length]);
        done[ok ? "replayed without effect" : "replay refused"]++;
    }

    /// The same with the clock set back to when the signature was still in time.
    function replayInTime(uint256 which, uint256 back) external watched(address(0)) {
        if (spent.length == 0) return;
        uint256 here = block.timestamp;
        vm.warp(here - bound(back, 0, 60 days));
        (bool ok,) = address(hub).call(spent[which % spent.length]);
        vm.warp(here);
        done[ok ? "replayed without effect" : "replay refused"]++;
    }

    /// Nobody's signature under each authorisation.
    function forge(uint256 which, uint96 amount) external watched(address(0)) {
        if (books.length == 0) return;
        Channel memory c = books[which % books.length].channel;
        uint40 late = uint40(block.timestamp + 365 days);
        refused(forgedOpen(c, amount, late));
        refused(forgedWithdraw(c, amount, late));
        bytes memory pen = signTopUp(NOBODY, c, amount, late, late);
        refused(abi.encodeCall(hub.topUp, (c, amount, late, late, pen)));
        pen = signRequestClose(NOBODY, c, late);
        refused(abi.encodeCall(hub.requestCloseBySig, (c, late, pen)));
        Claim memory k = claim(c, amount, NOBODY);
        pen = signClose(NOBODY, c, amount, late);
        refused(abi.encodeCall(hub.closeBySig, (k, late, pen)));
        // A voucher that adds nothing is not looked at, so this may pass, without effect.
        (bool ok,) = address(hub).call(abi.encodeCall(hub.settle, (k)));
        done[ok ? "forgery without effect" : "forgery refused"]++;
    }

    function forgedOpen(Channel memory c, uint96 amount, uint40 late)
        private
        returns (bytes memory)
    {
        OpenAuth memory auth;
        auth.channel = c;
        bytes32 salt = c.salt;
        c.salt = bytes32(salts++);
        (auth.deposit, auth.expiry, auth.validBefore) = (amount, late, late);
        bytes memory call = abi.encodeCall(hub.open, (auth, signOpen(NOBODY, auth)));
        c.salt = salt;
        return call;
    }

    function forgedWithdraw(Channel memory c, uint96 amount, uint40 late)
        private
        returns (bytes memory)
    {
        Withdraw memory w;
        (w.account, w.token, w.to) = (c.buyer, c.token, address(this));
        (w.amount, w.nonce, w.validBefore) = (amount, salts++, late);
        return abi.encodeCall(hub.withdrawBySig, (w, signWithdraw(NOBODY, w)));
    }

    function refused(bytes memory call) private {
        (bool ok,) = address(hub).call(call);
        vm.assertFalse(ok);
    }

    function pass(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 0, 20 days));
        done["pass"]++;
    }

    // ---- books -------------------------------------------------------------------------------

    function bookCount() external view returns (uint256) {
        return books.length;
    }

    function stateOf(uint256 which) public view returns (ChannelState memory) {
        return hub.stateOf(hub.channelId(books[which].channel));
    }

    function bookSettlement(uint256 which, uint96 cumulative) private returns (bool) {
        Book storage book = books[which % books.length];
        uint96 upTo = cumulative % (2 * MOST);
        if (upTo > book.state.deposit) upTo = book.state.deposit;
        if (upTo <= book.state.settled) return false;
        vaults[book.channel.token][book.channel.seller] += upTo - book.state.settled;
        book.state.settled = upTo;
        return true;
    }

    function bookEnd(uint256 which) private returns (bool) {
        Book storage book = books[which % books.length];
        if (book.state.closed) return false;
        vaults[book.channel.token][book.channel.buyer] += book.state.deposit - book.state.settled;
        book.state.deposit = book.state.settled;
        book.state.closed = true;
        return true;
    }

    function voucher(uint256 which, uint96 cumulative) private view returns (Claim memory) {
        return claim(books[which % books.length].channel, cumulative % (2 * MOST), HOT);
    }

    function submit(bytes memory call) private {
        (bool ok, bytes memory reason) = address(hub).call(call);
        if (!ok) {
            assembly {
                revert(add(reason, 32), mload(reason))
            }
        }
        spent.push(call);
    }

    function allMoney() private view returns (uint256[ACCOUNTS][2] memory money) {
        for (uint256 i = 0; i < ACCOUNTS; ++i) {
            money[0][i] = hub.balanceOf(address(tokens[0]), accounts[i]);
            money[1][i] = hub.balanceOf(address(tokens[1]), accounts[i]);
        }
    }

    function allStates() private view returns (ChannelState[] memory states) {
        states = new ChannelState[](books.length);
        for (uint256 i = 0; i < states.length; ++i) {
            states[i] = stateOf(i);
        }
    }

    function buyerOf(uint256 which) private view returns (address) {
        return books.length == 0 ? address(0) : books[which % books.length].channel.buyer;
    }

    function key(uint256 who) private pure returns (uint256) {
        return 0xA000 + who % ACCOUNTS;
    }

    function keyOf(address account) private view returns (uint256) {
        uint256 who = 0;
        while (accounts[who] != account) ++who;
        return key(who);
    }
}
