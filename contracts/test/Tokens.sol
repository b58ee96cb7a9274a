// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice Takes 1 % of each transfer.
contract FeeToken is ERC20("Fee", "FEE") {
    function mint(address account, uint256 value) external {
        _mint(account, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value / 100;
        super._update(from, to, value - fee);
        if (fee != 0) super._update(from, address(0), fee);
    }
}

/// @notice Says whatever its master wants, and calls back in the middle of a transfer.
contract HostileToken {
    mapping(address account => uint256) public balanceOf;
    mapping(address account => mapping(bytes32 nonce => bool)) public authorizationState;

    bool public broken;
    address private target;
    bytes private call;
    bytes public answer;
    bool public callSucceeded;

    function setBalance(address account, uint256 value) external {
        balanceOf[account] = value;
    }

    function breakDown() external {
        broken = true;
    }

    /// @dev During the next transfer this token calls `target_` with `call_`.
    function callBack(address target_, bytes calldata call_) external {
        (target, call) = (target_, call_);
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _move(msg.sender, to, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        _move(from, to, value);
        return true;
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _move(from, to, value);
    }

    function _move(address from, address to, uint256 value) private {
        require(!broken, "broken");
        if (target != address(0)) {
            address at = target;
            target = address(0);
            (callSucceeded, answer) = at.call(call);
        }
        unchecked {
            balanceOf[from] -= value;
            balanceOf[to] += value;
        }
    }
}

/// @notice Reports success and moves nothing.
contract LazyToken {
    function balanceOf(address) external pure returns (uint256) {
        return 0;
    }

    function transferFrom(address, address, uint256) external pure returns (bool) {
        return true;
    }
}
