// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @notice A contract wallet with one owner.
contract Wallet is IERC1271 {
    address private immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes memory signature) external view returns (bytes4) {
        return ECDSA.recover(hash, signature) == owner ? this.isValidSignature.selector : bytes4(0);
    }
}

/// @notice A wallet that answers every question with `answer`.
contract Yes is IERC1271 {
    bytes private answer;

    constructor(bytes memory answer_) {
        answer = answer_;
    }

    function isValidSignature(bytes32, bytes memory) external view returns (bytes4) {
        bytes memory data = answer;
        assembly {
            return(add(data, 32), mload(data))
        }
    }
}
