// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, Claim, OpenAuth} from "../src/TypedData.sol";
import {Authorization} from "../src/Vault.sol";
import {Pen} from "./Pen.sol";
import {vm} from "./Vm.sol";

/// @title A hub, a dollar, and a buyer with money in its vault
abstract contract Fixture is Pen {
    uint256 internal constant BUYER = 0xB0;
    uint256 internal constant SELLER = 0x5E;
    uint256 internal constant OPERATOR = 0x09;
    uint256 internal constant HOT = 0x407;
    uint256 internal constant STRANGER = 0x57;

    address internal immutable buyer = vm.addr(BUYER);
    address internal immutable seller = vm.addr(SELLER);
    address internal immutable operator = vm.addr(OPERATOR);
    address internal immutable hot = vm.addr(HOT);
    address internal immutable stranger = vm.addr(STRANGER);

    uint40 internal constant NOW = 1_800_000_000;
    uint32 internal constant PERIOD = 1 days;
    uint40 internal constant EXPIRY = NOW + 30 days;
    uint40 internal constant SOON = NOW + 10 minutes;
    uint96 internal constant DOLLAR = 1e6;
    uint96 internal constant DEPOSIT = 5 * DOLLAR;
    uint96 internal constant FEE = 2_000;

    TestUSD internal usd;

    function setUp() public virtual {
        vm.warp(NOW);
        hub = new ChannelHub();
        usd = new TestUSD();
        fund(buyer, 100 * DOLLAR);
    }

    // ---- money -------------------------------------------------------------------------------

    function fund(address account, uint256 amount) internal {
        usd.mint(address(this), amount);
        usd.approve(address(hub), amount);
        hub.deposit(address(usd), account, amount);
    }

    function vault(address account) internal view returns (uint256) {
        return hub.balanceOf(address(usd), account);
    }

    /// @dev An ERC-3009 authorisation of `usd` to the hub.
    function authorization(uint256 key, uint256 value, bytes32 nonce)
        internal
        view
        returns (Authorization memory auth, bytes memory signature)
    {
        auth = Authorization({
            from: vm.addr(key), value: value, validAfter: 0, validBefore: SOON, nonce: nonce
        });
        signature = signAuthorization(key, usd, auth);
    }

    // ---- channels ----------------------------------------------------------------------------

    function channel() internal view returns (Channel memory) {
        return Channel({
            buyer: buyer,
            seller: seller,
            operator: operator,
            token: address(usd),
            voucherSigner: hot,
            challengePeriod: PERIOD,
            salt: bytes32(uint256(1))
        });
    }

    function openAuth() internal view returns (OpenAuth memory) {
        return OpenAuth({
            channel: channel(), deposit: DEPOSIT, openFee: FEE, expiry: EXPIRY, validBefore: SOON
        });
    }

    function opened() internal returns (Channel memory) {
        return opened(bytes32(uint256(1)));
    }

    function opened(bytes32 salt) internal returns (Channel memory) {
        OpenAuth memory auth = openAuth();
        auth.channel.salt = salt;
        hub.open(auth, signOpen(BUYER, auth));
        return auth.channel;
    }

    /// @dev The seller gives everything back.
    function close(Channel memory c) internal {
        Claim memory none;
        none.channel = c;
        vm.prank(seller);
        hub.close(none);
    }

    function stateOf(Channel memory c) internal view returns (ChannelState memory) {
        return hub.stateOf(hub.channelId(c));
    }

    function claim(Channel memory c, uint96 cumulative) internal view returns (Claim memory) {
        return claim(c, cumulative, HOT);
    }
}
