// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// @title The part of ERC-3009 the hub uses: a token transfer signed by its sender
/// @notice Signatures travel as bytes, as in USDC from version 2.2 on, so that contract wallets
/// can sign too.
interface IERC3009 {
    /// @notice Moves `value` from `from` to the caller, who must be `to`.
    /// @param from Signer and payer.
    /// @param to Payee; the token requires that it is the caller.
    /// @param value Token units.
    /// @param validAfter Unix time; valid strictly after it.
    /// @param validBefore Unix time; valid strictly before it.
    /// @param nonce Random; works once per signer.
    /// @param signature The signer's, over the token's own EIP-712 domain.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external;

    /// @notice Whether `nonce` was used or cancelled.
    /// @param authorizer Whose nonce.
    /// @param nonce Which.
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
}
