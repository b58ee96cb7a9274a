// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";

import {Channel, Claim, OpenAuth, TypedData} from "./TypedData.sol";
import {Vault} from "./Vault.sol";

/// @notice All that is stored of a channel: one slot.
/// @param deposit Token units set aside; equals `settled` once closed.
/// @param settled Token units the seller has got, opening fee included.
/// @param expiry Unix time from which {reclaim} works; 0 means never opened.
/// @param closing The buyer has asked for the end; no top-up can undo that.
/// @param closed It is over.
struct ChannelState {
    uint96 deposit;
    uint96 settled;
    uint40 expiry;
    bool closing;
    bool closed;
}

/// @title Souk's hub of one-way payment channels
/// @notice A channel is a slice of the buyer's vault set aside for one seller. The buyer pays by
/// signing vouchers off chain, each for the sum so far; the seller brings the last one whenever it
/// likes. What is left at the end goes back to the buyer's vault, what was earned lies in the
/// seller's vault.
///
/// No owner, no pause, no upgrade, no fee: nobody but the two sides can do anything to a channel.
///
/// Life of a channel: {open} → {settle}* , {topUp}* → closed by the seller ({close},
/// {closeBySig}), or, without the seller, {requestClose} → challenge period → {reclaim}. Ids are
/// never used again. Settling and closing may be repeated: what is done already is a no-op, so
/// nobody can break somebody's multicall by doing a part of it first.
contract ChannelHub is Vault, Multicall {
    /// @notice Seconds; below it a seller could miss its last chance to settle.
    uint32 public constant CHALLENGE_PERIOD_MIN = 1 hours;
    /// @notice Seconds; above it a silent seller would hold the buyer's money too long.
    uint32 public constant CHALLENGE_PERIOD_MAX = 30 days;

    bytes32 private constant NAME_HASH = keccak256("SoukChannelHub");
    bytes32 private constant VERSION_HASH = keccak256("1");

    mapping(bytes32 id => ChannelState) private _channels;

    /// @notice Carries the whole descriptor: a node that lost its data rebuilds from this log.
    event ChannelOpened(
        bytes32 indexed id,
        address indexed buyer,
        address indexed seller,
        Channel channel,
        uint96 deposit,
        uint96 openFee,
        uint40 expiry
    );
    /// @notice The deposit and the expiry are now these.
    event ChannelToppedUp(bytes32 indexed id, uint96 deposit, uint40 expiry);
    /// @notice The seller has now got `settled` in all, `paid` of it just now.
    event ChannelSettled(bytes32 indexed id, uint96 settled, uint96 paid);
    /// @notice The buyer wants out; {reclaim} works from `expiry` on.
    event CloseRequested(bytes32 indexed id, uint40 expiry);
    /// @notice Over: the seller got `settled` in all, `refund` went back to the buyer's vault.
    event ChannelClosed(bytes32 indexed id, uint96 settled, uint96 refund);

    /// @notice No seller, no voucher signer, or a challenge period out of range.
    error BadChannel();
    /// @notice An opening fee above the deposit, or a top-up that adds nothing.
    error BadAmount();
    /// @notice Sooner than a challenge period from now, or sooner than it was.
    error BadExpiry();
    /// @notice This id was opened before.
    error ChannelExists();
    /// @notice This id was never opened.
    error ChannelUnknown();
    /// @notice The channel is closed, or the buyer has asked for that.
    error ChannelEnding();
    /// @notice Reclaim must wait for the expiry.
    error NotExpired();
    /// @notice The caller may not do this.
    error NotAllowed();

    /// @notice Opens a channel from the buyer's vault; anyone may submit.
    /// @dev Errors: BadChannel, BadAmount, AuthExpired, BadExpiry, ChannelExists, BadSignature,
    /// InsufficientBalance. The buyer alone chooses the descriptor: before it serves, a seller
    /// checks each word of it, above all that the operator is its own.
    /// @param auth What the buyer signed.
    /// @param signature The buyer's.
    /// @return id The channel's id.
    function open(OpenAuth calldata auth, bytes calldata signature) external returns (bytes32 id) {
        Channel calldata channel = auth.channel;
        if (channel.seller == address(0) || channel.voucherSigner == address(0)) {
            revert BadChannel();
        }
        if (
            channel.challengePeriod < CHALLENGE_PERIOD_MIN
                || channel.challengePeriod > CHALLENGE_PERIOD_MAX
        ) {
            revert BadChannel();
        }
        if (auth.openFee > auth.deposit) revert BadAmount();
        _checkTimes(channel, auth.expiry, auth.validBefore);

        bytes32 channelHash = TypedData.hash(channel);
        id = TypedData.digest(domainSeparator(), channelHash);
        if (_channels[id].expiry != 0) revert ChannelExists();
        bytes32 authHash = TypedData.hash(auth, channelHash);
        _requireSignature(channel.buyer, address(0), authHash, signature);

        _debit(channel.token, channel.buyer, auth.deposit);
        _channels[id] = ChannelState({
            deposit: auth.deposit,
            settled: auth.openFee,
            expiry: auth.expiry,
            closing: false,
            closed: false
        });
        balanceOf[channel.token][channel.seller] += auth.openFee;
        emit ChannelOpened(
            id, channel.buyer, channel.seller, channel, auth.deposit, auth.openFee, auth.expiry
        );
    }

    /// @notice Raises the deposit, and the expiry if signed so; anyone may submit.
    /// @dev The deposit must grow, so an authorisation works once. A close request kills those
    /// not used yet, so a seller cannot answer it by locking the money up again.
    /// Errors: ChannelUnknown, ChannelEnding, BadAmount, BadExpiry, AuthExpired, BadSignature,
    /// InsufficientBalance.
    /// @param channel The channel.
    /// @param deposit The new deposit in all, token units.
    /// @param expiry The new expiry, not before the present one.
    /// @param validBefore Unix time from which this authorisation is void.
    /// @param signature The buyer's, over TopUpAuth.
    function topUp(
        Channel calldata channel,
        // Named as in the signed struct.
        // slither-disable-next-line shadowing-local
        uint96 deposit,
        uint40 expiry,
        uint40 validBefore,
        bytes calldata signature
    ) external {
        (bytes32 id, ChannelState memory state) = _load(channel);
        if (state.closing || state.closed) revert ChannelEnding();
        if (deposit <= state.deposit) revert BadAmount();
        if (expiry < state.expiry) revert BadExpiry();
        _checkTimes(channel, expiry, validBefore);
        bytes32 authHash = TypedData.hashTopUp(id, deposit, expiry, validBefore);
        _requireSignature(channel.buyer, address(0), authHash, signature);

        _debit(channel.token, channel.buyer, deposit - state.deposit);
        state.deposit = deposit;
        state.expiry = expiry;
        _channels[id] = state;
        emit ChannelToppedUp(id, deposit, expiry);
    }

    /// @notice Pays the seller what a voucher adds; anyone may submit.
    /// @dev A no-op when it adds nothing: an older voucher, a closed or an unknown channel.
    /// Errors: BadSignature.
    /// @param claim The voucher. Above the deposit it is worth the deposit.
    /// @return paid Token units that went to the seller's vault.
    function settle(Claim calldata claim) external returns (uint96 paid) {
        return _settle(claim, domainSeparator());
    }

    /// @notice {settle} for each of `claims`, in order.
    /// @dev Errors: BadSignature; one forged voucher reverts them all.
    /// @param claims The vouchers, of one or of many channels.
    function settleBatch(Claim[] calldata claims) external {
        bytes32 domain = domainSeparator();
        for (uint256 i = 0; i < claims.length; ++i) {
            _settle(claims[i], domain);
        }
    }

    /// @notice Settles the seller's last voucher and ends the channel; for the seller or its
    /// operator. A no-op when it is closed already.
    /// @dev Errors: NotAllowed, BadSignature, ChannelUnknown.
    /// @param claim The voucher; `cumulative` 0 when there is none.
    function close(Claim calldata claim) external {
        Channel calldata channel = claim.channel;
        if (msg.sender != channel.seller && msg.sender != channel.operator) revert NotAllowed();
        _close(claim);
    }

    /// @notice The same for anyone with the agreement of the seller or its operator.
    /// @dev The seller signs the amount, so nobody can close with an older voucher than it meant.
    /// Errors: AuthExpired, BadSignature, ChannelUnknown.
    /// @param claim The voucher with exactly the agreed `cumulative`.
    /// @param validBefore Unix time from which this authorisation is void.
    /// @param signature The seller's or the operator's, over CloseAuth.
    function closeBySig(Claim calldata claim, uint40 validBefore, bytes calldata signature)
        external
    {
        Channel calldata channel = claim.channel;
        if (block.timestamp >= validBefore) revert AuthExpired();
        bytes32 authHash = TypedData.hashClose(channelId(channel), claim.cumulative, validBefore);
        _requireSignature(channel.seller, channel.operator, authHash, signature);
        _close(claim);
    }

    /// @notice Brings the expiry down to a challenge period from now; for the buyer or its voucher
    /// signer. A no-op when that was asked for, or the channel closed, already.
    /// @dev Errors: NotAllowed, ChannelUnknown.
    /// @param channel The channel.
    function requestClose(Channel calldata channel) external {
        if (msg.sender != channel.buyer && msg.sender != channel.voucherSigner) {
            revert NotAllowed();
        }
        _requestClose(channel);
    }

    /// @notice The same for anyone with a signature of either.
    /// @dev Errors: AuthExpired, BadSignature, ChannelUnknown.
    /// @param channel The channel.
    /// @param validBefore Unix time from which this authorisation is void.
    /// @param signature The buyer's or the voucher signer's, over RequestClose.
    function requestCloseBySig(
        Channel calldata channel,
        uint40 validBefore,
        bytes calldata signature
    ) external {
        if (block.timestamp >= validBefore) revert AuthExpired();
        bytes32 authHash = TypedData.hashRequestClose(channelId(channel), validBefore);
        _requireSignature(channel.buyer, channel.voucherSigner, authHash, signature);
        _requestClose(channel);
    }

    /// @notice Ends an expired channel; anyone may submit. A no-op when it is closed already.
    /// @dev Calls nobody, so no token and no wallet can stop it.
    /// Errors: ChannelUnknown, NotExpired.
    /// @param channel The channel.
    function reclaim(Channel calldata channel) external {
        (bytes32 id, ChannelState memory state) = _load(channel);
        if (block.timestamp < state.expiry) revert NotExpired();
        _finish(channel, id, state);
    }

    /// @notice What is stored of a channel; all zero for an unknown id.
    /// @param id The channel's id.
    /// @return The state.
    function stateOf(bytes32 id) external view returns (ChannelState memory) {
        return _channels[id];
    }

    /// @notice The EIP-712 digest of the descriptor, which binds it to this hub and chain.
    /// @param channel The descriptor.
    /// @return The id it has or would have.
    function channelId(Channel calldata channel) public view returns (bytes32) {
        return TypedData.digest(domainSeparator(), TypedData.hash(channel));
    }

    /// @inheritdoc Vault
    function domainSeparator() public view override returns (bytes32) {
        return TypedData.domainSeparator(NAME_HASH, VERSION_HASH, address(this));
    }

    /// @dev Fresh money must stay for a challenge period at least, or the seller could not use it.
    function _checkTimes(Channel calldata channel, uint40 expiry, uint40 validBefore) private view {
        if (block.timestamp >= validBefore) revert AuthExpired();
        if (expiry < block.timestamp + channel.challengePeriod) revert BadExpiry();
    }

    /// @dev The id and state of a channel that was opened; it may be closed.
    function _load(Channel calldata channel)
        private
        view
        returns (bytes32 id, ChannelState memory state)
    {
        id = channelId(channel);
        state = _channels[id];
        if (state.expiry == 0) revert ChannelUnknown();
    }

    /// @dev Pays what the voucher adds; `domain` is computed once per batch.
    function _settle(Claim calldata claim, bytes32 domain) private returns (uint96 paid) {
        Channel calldata channel = claim.channel;
        bytes32 id = TypedData.digest(domain, TypedData.hash(channel));
        ChannelState memory state = _channels[id];
        uint96 settled = claim.cumulative < state.deposit ? claim.cumulative : state.deposit;
        // Covers closed and unknown channels too: their deposit is what was settled, or 0.
        if (settled <= state.settled) return 0;

        bytes32 digest = TypedData.digest(domain, TypedData.hashVoucher(id, claim.cumulative));
        // A failed recovery gives zero, which no open channel has as its signer.
        // slither-disable-next-line unused-return
        (address signer,,) = ECDSA.tryRecover(digest, claim.r, claim.vs);
        if (signer != channel.voucherSigner) revert BadSignature();

        paid = settled - state.settled;
        state.settled = settled;
        _channels[id] = state;
        balanceOf[channel.token][channel.seller] += paid;
        emit ChannelSettled(id, settled, paid);
    }

    /// @dev Pays the voucher and ends the channel; who may is the caller's business.
    function _close(Claim calldata claim) private {
        _settle(claim, domainSeparator());
        (bytes32 id, ChannelState memory state) = _load(claim.channel);
        _finish(claim.channel, id, state);
    }

    /// @dev A request later than the signed expiry changes nothing but `closing`.
    function _requestClose(Channel calldata channel) private {
        (bytes32 id, ChannelState memory state) = _load(channel);
        if (state.closing || state.closed) return;
        uint40 expiry = uint40(block.timestamp) + channel.challengePeriod;
        if (expiry < state.expiry) state.expiry = expiry;
        state.closing = true;
        _channels[id] = state;
        emit CloseRequested(id, state.expiry);
    }

    /// @dev The slot stays as a tombstone: `expiry` is not zero, so the id cannot open again.
    function _finish(Channel calldata channel, bytes32 id, ChannelState memory state) private {
        if (state.closed) return;
        uint96 refund = state.deposit - state.settled;
        state.deposit = state.settled;
        state.closed = true;
        _channels[id] = state;
        balanceOf[channel.token][channel.buyer] += refund;
        emit ChannelClosed(id, state.settled, refund);
    }
}
