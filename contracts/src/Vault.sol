// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IERC3009} from "./IERC3009.sol";
import {TypedData, Withdraw} from "./TypedData.sol";

/// @notice An ERC-3009 transfer to the hub, as its payer signed it.
/// @param from Signer, payer, and the account that is credited.
/// @param value Token units.
/// @param validAfter Unix time; valid strictly after it.
/// @param validBefore Unix time; valid strictly before it.
/// @param nonce The token's own nonce, random.
struct Authorization {
    address from;
    uint256 value;
    uint256 validAfter;
    uint256 validBefore;
    bytes32 nonce;
}

/// @title Balances per token and account; the only part of the hub that touches tokens
/// @notice Each token has its own ledger: whatever a token's code does, it can move no other
/// token's money. Functions that call a token are guarded against re-entry; nothing else makes a
/// call that could write.
abstract contract Vault is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice Free balance, in token units.
    mapping(address token => mapping(address account => uint256)) public balanceOf;

    /// @notice Used nonces of {withdrawBySig}: bit `nonce % 256` of word `nonce / 256`. Neighbours
    /// share a word, which makes the second one cheaper; their order does not matter.
    mapping(address account => mapping(uint256 word => uint256)) public usedNonces;

    /// @notice `amount` came in and was credited to `account`.
    event Deposited(address indexed token, address indexed account, uint256 amount);

    /// @notice `account` sent `amount` out to `to`, and `fee` to the vault of `relayer`.
    event Withdrawn(
        address indexed token,
        address indexed account,
        address indexed to,
        uint256 amount,
        address relayer,
        uint256 fee
    );

    /// @notice The vault holds less than was asked for.
    error InsufficientBalance();
    /// @notice The money would be lost: the zero address, or the hub itself as receiver.
    error BadAccount();
    /// @notice The token moved another amount than was asked for (a fee, a rebase, a lie).
    error TransferMismatch();
    /// @notice The authorisation's `validBefore` has come.
    error AuthExpired();
    /// @notice Not signed by who must sign.
    error BadSignature();
    /// @notice This nonce was used before.
    error NonceUsed();

    /// @notice Credits `account` with the caller's tokens. Needs an allowance for the hub.
    /// @dev Errors: BadAccount, TransferMismatch, and the token's.
    /// @param token ERC-20 token; one that takes a fee on transfer is refused.
    /// @param account Whom to credit; anyone.
    /// @param amount Token units.
    function deposit(address token, address account, uint256 amount) external nonReentrant {
        uint256 held = _held(token);
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        _credit(token, account, amount, held);
    }

    /// @notice Credits the signer of an ERC-3009 authorisation with its tokens; anyone may submit.
    /// @dev Does nothing when the nonce is used already: only the hub can use an authorisation
    /// made out to it, so then the money is in the vault, brought by somebody who saw the pending
    /// transaction. A revert would let that somebody break the relayer's multicall. (Or the payer
    /// has cancelled it; then what follows fails for want of money.)
    /// Errors: TransferMismatch, and the token's.
    /// @param token ERC-20 token with ERC-3009.
    /// @param auth What was signed.
    /// @param signature The payer's, over the token's EIP-712 domain.
    function depositWithAuthorization(
        address token,
        Authorization calldata auth,
        bytes calldata signature
    ) external nonReentrant {
        if (IERC3009(token).authorizationState(auth.from, auth.nonce)) {
            return;
        }
        uint256 held = _held(token);
        // What came in is known after the call only; the guard keeps other vault calls out of it.
        // slither-disable-next-line reentrancy-benign
        IERC3009(token)
            .receiveWithAuthorization(
                auth.from,
                address(this),
                auth.value,
                auth.validAfter,
                auth.validBefore,
                auth.nonce,
                signature
            );
        _credit(token, auth.from, auth.value, held);
    }

    /// @notice Sends `amount` of the caller's vault to `to`.
    /// @dev Errors: InsufficientBalance, BadAccount, and the token's.
    /// @param token ERC-20 token.
    /// @param to Receiver.
    /// @param amount Token units.
    function withdraw(address token, address to, uint256 amount) external nonReentrant {
        _withdraw(
            Withdraw({
                account: msg.sender,
                token: token,
                to: to,
                amount: amount,
                relayer: address(0),
                fee: 0,
                nonce: 0,
                validBefore: 0
            })
        );
    }

    /// @notice The same for an owner who sends no transaction and pays the relayer from the vault.
    /// @dev Errors: AuthExpired, NonceUsed, BadSignature, and those of {withdraw}.
    /// @param auth What was signed.
    /// @param signature The account's.
    function withdrawBySig(Withdraw calldata auth, bytes calldata signature) external nonReentrant {
        if (block.timestamp >= auth.validBefore) revert AuthExpired();
        _useNonce(auth.account, auth.nonce);
        _requireSignature(auth.account, address(0), TypedData.hash(auth), signature);
        _withdraw(auth);
    }

    /// @notice The EIP-712 domain separator of the hub on this chain.
    function domainSeparator() public view virtual returns (bytes32);

    /// @dev Takes `amount` out of a vault.
    function _debit(address token, address account, uint256 amount) internal {
        uint256 balance = balanceOf[token][account];
        if (balance < amount) revert InsufficientBalance();
        unchecked {
            balanceOf[token][account] = balance - amount;
        }
    }

    /// @dev Reverts unless `owner` or its `hotKey` (zero for none) signed `structHash`. ECDSA goes
    /// first, so that an EOA with an EIP-7702 delegation can still sign with its own key; ERC-1271
    /// serves contract wallets. It is a static call: the wallet's code can change nothing.
    function _requireSignature(
        address owner,
        address hotKey,
        bytes32 structHash,
        bytes calldata signature
    ) internal view {
        bytes32 digest = TypedData.digest(domainSeparator(), structHash);
        // The third value would only explain the error.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError error,) = ECDSA.tryRecover(digest, signature);
        // Without an error the signer is not zero, so a zero key matches nobody.
        if (error == ECDSA.RecoverError.NoError && (signer == owner || signer == hotKey)) return;
        if (!SignatureChecker.isValidERC1271SignatureNow(owner, digest, signature)) {
            revert BadSignature();
        }
    }

    /// @dev `held` is the hub's balance before the transfer.
    function _credit(address token, address account, uint256 amount, uint256 held) private {
        if (account == address(0)) revert BadAccount();
        if (_held(token) != held + amount) revert TransferMismatch();
        balanceOf[token][account] += amount;
        emit Deposited(token, account, amount);
    }

    /// @dev Takes `amount + fee`, then pays both; the token is called last.
    function _withdraw(Withdraw memory auth) private {
        address relayer = auth.relayer == address(0) ? msg.sender : auth.relayer;
        _debit(auth.token, auth.account, auth.amount + auth.fee);
        emit Withdrawn(auth.token, auth.account, auth.to, auth.amount, relayer, auth.fee);
        if (auth.fee != 0) balanceOf[auth.token][relayer] += auth.fee;
        if (auth.amount != 0) {
            if (auth.to == address(0) || auth.to == address(this)) revert BadAccount();
            IERC20(auth.token).safeTransfer(auth.to, auth.amount);
        }
    }

    /// @dev Marks a nonce as used, or reverts when it was.
    function _useNonce(address account, uint256 nonce) private {
        uint256 bit = uint256(1) << (nonce % 256);
        uint256 used = usedNonces[account][nonce / 256];
        if (used & bit != 0) revert NonceUsed();
        usedNonces[account][nonce / 256] = used | bit;
    }

    /// @dev What the token says the hub holds.
    function _held(address token) private view returns (uint256) {
        return IERC20(token).balanceOf(address(this));
    }
}
