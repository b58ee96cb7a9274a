// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub, ChannelState} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, Claim, OpenAuth, TypedData, Withdraw} from "../src/TypedData.sol";
import {Authorization} from "../src/Vault.sol";
import {vm} from "./Vm.sol";

/// @title A hub, a dollar, a buyer with money in its vault, and everybody's pen
/// @notice Struct hashes are built here a second time, so that the tests do not repeat a slip of
/// the contract.
abstract contract Fixture {
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

    ChannelHub internal hub;
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

    function claim(Channel memory c, uint96 cumulative, uint256 key)
        internal
        view
        returns (Claim memory)
    {
        bytes32 structHash =
            keccak256(abi.encode(TypedData.VOUCHER_TYPEHASH, hub.channelId(c), cumulative));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest(structHash));
        return
            Claim({
                channel: c, cumulative: cumulative, r: r, vs: s | bytes32(uint256(v - 27) << 255)
            });
    }

    // ---- signatures --------------------------------------------------------------------------

    function sign(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest(structHash));
        return abi.encodePacked(r, s, v);
    }

    function digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", hub.domainSeparator(), structHash));
    }

    function signOpen(uint256 key, OpenAuth memory a) internal view returns (bytes memory) {
        bytes32 channelHash = keccak256(abi.encode(TypedData.CHANNEL_TYPEHASH, a.channel));
        return sign(
            key,
            keccak256(
                abi.encode(
                    TypedData.OPEN_TYPEHASH,
                    channelHash,
                    a.deposit,
                    a.openFee,
                    a.expiry,
                    a.validBefore
                )
            )
        );
    }

    function signTopUp(
        uint256 key,
        Channel memory c,
        uint96 deposit,
        uint40 expiry,
        uint40 validBefore
    ) internal view returns (bytes memory) {
        bytes32 id = hub.channelId(c);
        return sign(
            key, keccak256(abi.encode(TypedData.TOP_UP_TYPEHASH, id, deposit, expiry, validBefore))
        );
    }

    function signClose(uint256 key, Channel memory c, uint96 cumulative, uint40 validBefore)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = hub.channelId(c);
        return
            sign(key, keccak256(abi.encode(TypedData.CLOSE_TYPEHASH, id, cumulative, validBefore)));
    }

    function signRequestClose(uint256 key, Channel memory c, uint40 validBefore)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = hub.channelId(c);
        return sign(key, keccak256(abi.encode(TypedData.REQUEST_CLOSE_TYPEHASH, id, validBefore)));
    }

    function signWithdraw(uint256 key, Withdraw memory w) internal view returns (bytes memory) {
        return sign(key, keccak256(abi.encode(TypedData.WITHDRAW_TYPEHASH, w)));
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
        bytes32 structHash = keccak256(
            abi.encode(
                usd.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                auth.from,
                address(hub),
                value,
                uint256(0),
                uint256(SOON),
                nonce
            )
        );
        bytes32 toSign = keccak256(abi.encodePacked(hex"1901", usd.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, toSign);
        signature = abi.encodePacked(r, s, v);
    }
}
