// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ChannelHub} from "../src/ChannelHub.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Channel, Claim, OpenAuth, TypedData, Withdraw} from "../src/TypedData.sol";
import {Authorization} from "../src/Vault.sol";
import {vm} from "./Vm.sol";

/// @title Everything that anybody signs
/// @notice Struct hashes are built here a second time, so that the tests do not repeat a slip of
/// the contract.
abstract contract Pen {
    ChannelHub internal hub;

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

    function signAuthorization(uint256 key, TestUSD token, Authorization memory a)
        internal
        view
        returns (bytes memory)
    {
        bytes32 structHash = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                a.from,
                address(hub),
                a.value,
                a.validAfter,
                a.validBefore,
                a.nonce
            )
        );
        bytes32 toSign =
            keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, toSign);
        return abi.encodePacked(r, s, v);
    }
}
