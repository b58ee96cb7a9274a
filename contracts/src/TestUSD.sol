// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {IERC3009} from "./IERC3009.sol";
import {TypedData} from "./TypedData.sol";

/// @title A dollar for test chains: USDC's interface, and anyone may mint
contract TestUSD is ERC20, IERC3009 {
    /// @notice EIP-712 version of the domain, as USDC shows it.
    string public constant version = "2";

    /// @notice EIP-712 type hash of an ERC-3009 authorisation to receive.
    bytes32 public constant RECEIVE_WITH_AUTHORIZATION_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    /// @inheritdoc IERC3009
    mapping(address authorizer => mapping(bytes32 nonce => bool)) public authorizationState;

    /// @notice `authorizer` used `nonce`.
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    /// @notice Outside its time, used before, not for the caller, or not signed by the payer.
    error AuthorizationInvalid();

    constructor() ERC20("Test USD", "TUSD") {}

    /// @notice Makes `value` new units for `account`; anyone may.
    function mint(address account, uint256 value) external {
        _mint(account, value);
    }

    /// @inheritdoc IERC3009
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        bytes32 structHash = keccak256(
            abi.encode(
                RECEIVE_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce
            )
        );
        bytes32 digest = TypedData.digest(DOMAIN_SEPARATOR(), structHash);
        if (
            to != msg.sender || block.timestamp <= validAfter || block.timestamp >= validBefore
                || authorizationState[from][nonce]
                || !SignatureChecker.isValidSignatureNow(from, digest, signature)
        ) revert AuthorizationInvalid();
        authorizationState[from][nonce] = true;
        emit AuthorizationUsed(from, nonce);
        _transfer(from, to, value);
    }

    /// @notice The EIP-712 domain separator, under the name USDC gives it.
    // slither-disable-next-line naming-convention
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return TypedData.domainSeparator(
            keccak256(bytes(name())), keccak256(bytes(version)), address(this)
        );
    }

    /// @notice Six, as USDC has.
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
