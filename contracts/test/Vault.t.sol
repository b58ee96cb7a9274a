// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {TestUSD} from "../src/TestUSD.sol";
import {Withdraw} from "../src/TypedData.sol";
import {Authorization, Vault} from "../src/Vault.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Wallet} from "./Wallet.sol";

contract VaultTest is Fixture {
    // ---- deposit -----------------------------------------------------------------------------

    function test_ADepositCreditsAnyAccountFromTheCaller() public {
        usd.mint(address(this), 7);
        usd.approve(address(hub), 7);
        vm.expectEmit(address(hub));
        emit Vault.Deposited(address(usd), stranger, 7);
        hub.deposit(address(usd), stranger, 7);
        vm.assertEq(vault(stranger), 7);
        vm.assertEq(usd.balanceOf(address(this)), 0);
        vm.assertEq(usd.balanceOf(address(hub)), 100 * DOLLAR + 7);
    }

    function test_ADepositWithoutAllowanceFails() public {
        usd.mint(stranger, 7);
        vm.expectRevert(
            abi.encodeWithSelector(
                IERC20Errors.ERC20InsufficientAllowance.selector, address(hub), 0, 7
            )
        );
        vm.prank(stranger);
        hub.deposit(address(usd), stranger, 7);
    }

    function test_NobodyCanDepositForTheZeroAddress() public {
        usd.mint(address(this), 7);
        usd.approve(address(hub), 7);
        vm.expectRevert(Vault.BadAccount.selector);
        hub.deposit(address(usd), address(0), 7);
    }

    function test_TokensNeverMix() public {
        TestUSD other = new TestUSD();
        other.mint(address(hub), 50);
        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(buyer);
        hub.withdraw(address(other), buyer, 1);
    }

    // ---- deposit with authorization ----------------------------------------------------------

    function test_AnyoneMaySubmitAnAuthorizationAndItsSignerIsCredited() public {
        usd.mint(stranger, 9);
        (Authorization memory auth, bytes memory signature) = authorization(STRANGER, 9, "n");
        vm.expectEmit(address(hub));
        emit Vault.Deposited(address(usd), stranger, 9);
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.assertEq(vault(stranger), 9);
        vm.assertEq(usd.balanceOf(stranger), 0);
        vm.assertTrue(usd.authorizationState(stranger, "n"));
    }

    function test_AUsedAuthorizationDoesNothing() public {
        usd.mint(stranger, 18);
        (Authorization memory auth, bytes memory signature) = authorization(STRANGER, 9, "n");
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.recordLogs();
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(vault(stranger), 9);
        vm.assertEq(usd.balanceOf(stranger), 9);
    }

    function test_AnAuthorizationSignedByAnotherFails() public {
        usd.mint(stranger, 9);
        (Authorization memory auth, bytes memory signature) = authorization(BUYER, 9, "n");
        auth.from = stranger;
        vm.expectRevert(TestUSD.AuthorizationInvalid.selector);
        hub.depositWithAuthorization(address(usd), auth, signature);
    }

    function test_AnAuthorizationHasItsTimeStrictly() public {
        usd.mint(stranger, 9);
        (Authorization memory auth, bytes memory signature) = authorization(STRANGER, 9, "n");
        vm.warp(SOON);
        vm.expectRevert(TestUSD.AuthorizationInvalid.selector);
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.warp(0);
        vm.expectRevert(TestUSD.AuthorizationInvalid.selector);
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.warp(SOON - 1);
        hub.depositWithAuthorization(address(usd), auth, signature);
        vm.assertEq(vault(stranger), 9);
    }

    function test_OnlyTheHubCanUseAnAuthorizationToTheHub() public {
        usd.mint(stranger, 9);
        (Authorization memory auth, bytes memory signature) = authorization(STRANGER, 9, "n");
        vm.expectRevert(TestUSD.AuthorizationInvalid.selector);
        usd.receiveWithAuthorization(
            auth.from, address(hub), 9, auth.validAfter, auth.validBefore, "n", signature
        );
    }

    // ---- withdraw ----------------------------------------------------------------------------

    function test_TheOwnerWithdrawsToAnyAddress() public {
        vm.expectEmit(address(hub));
        emit Vault.Withdrawn(address(usd), buyer, stranger, 30, buyer, 0);
        vm.prank(buyer);
        hub.withdraw(address(usd), stranger, 30);
        vm.assertEq(vault(buyer), 100 * DOLLAR - 30);
        vm.assertEq(usd.balanceOf(stranger), 30);
    }

    function test_NobodyWithdrawsMoreThanItsVault() public {
        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(stranger);
        hub.withdraw(address(usd), stranger, 1);

        vm.expectRevert(Vault.InsufficientBalance.selector);
        vm.prank(buyer);
        hub.withdraw(address(usd), buyer, 100 * DOLLAR + 1);

        vm.prank(buyer);
        hub.withdraw(address(usd), buyer, 100 * DOLLAR);
        vm.assertEq(vault(buyer), 0);
    }

    function test_AWithdrawalIntoTheHubOrNowhereIsRefused() public {
        vm.expectRevert(Vault.BadAccount.selector);
        vm.prank(buyer);
        hub.withdraw(address(usd), address(hub), 1);

        vm.expectRevert(Vault.BadAccount.selector);
        vm.prank(buyer);
        hub.withdraw(address(usd), address(0), 1);
    }

    // ---- withdraw by signature ---------------------------------------------------------------

    function withdrawal() private view returns (Withdraw memory) {
        return Withdraw({
            account: buyer,
            token: address(usd),
            to: buyer,
            amount: 30,
            relayer: seller,
            fee: 5,
            nonce: 0,
            validBefore: SOON
        });
    }

    function test_ASignedWithdrawalPaysTheReceiverAndTheRelayer() public {
        Withdraw memory auth = withdrawal();
        bytes memory signature = signWithdraw(BUYER, auth);
        vm.expectEmit(address(hub));
        emit Vault.Withdrawn(address(usd), buyer, buyer, 30, seller, 5);
        hub.withdrawBySig(auth, signature);
        vm.assertEq(vault(buyer), 100 * DOLLAR - 35);
        vm.assertEq(usd.balanceOf(buyer), 30);
        vm.assertEq(vault(seller), 5);
    }

    function test_WithoutANamedRelayerTheSubmitterEarnsTheFee() public {
        Withdraw memory auth = withdrawal();
        auth.relayer = address(0);
        bytes memory signature = signWithdraw(BUYER, auth);
        vm.prank(stranger);
        hub.withdrawBySig(auth, signature);
        vm.assertEq(vault(stranger), 5);
    }

    function test_AFeeAloneNeedsNoReceiver() public {
        Withdraw memory auth = withdrawal();
        (auth.to, auth.amount) = (address(0), 0);
        hub.withdrawBySig(auth, signWithdraw(BUYER, auth));
        vm.assertEq(vault(buyer), 100 * DOLLAR - 5);
        vm.assertEq(vault(seller), 5);
    }

    function test_TheFeeIsOnTopAndMustBeCovered() public {
        Withdraw memory auth = withdrawal();
        auth.amount = 100 * DOLLAR - 4;
        bytes memory signature = signWithdraw(BUYER, auth);
        vm.expectRevert(Vault.InsufficientBalance.selector);
        hub.withdrawBySig(auth, signature);
    }

    function test_ANonceWorksOnceAndInAnyOrder() public {
        uint256[4] memory nonces = [uint256(700), 3, 701, type(uint256).max];
        Withdraw memory auth = withdrawal();
        for (uint256 i = 0; i < nonces.length; ++i) {
            auth.nonce = nonces[i];
            hub.withdrawBySig(auth, signWithdraw(BUYER, auth));
        }
        vm.assertEq(hub.usedNonces(buyer, 2), (1 << (700 - 512)) | (1 << (701 - 512)));
        for (uint256 i = 0; i < nonces.length; ++i) {
            auth.nonce = nonces[i];
            // Another amount: the nonce is what counts.
            auth.amount = 1;
            bytes memory signature = signWithdraw(BUYER, auth);
            vm.expectRevert(Vault.NonceUsed.selector);
            hub.withdrawBySig(auth, signature);
        }
        vm.assertEq(usd.balanceOf(buyer), 4 * 30);
    }

    function test_NoncesOfTwoAccountsAreApart() public {
        Withdraw memory auth = withdrawal();
        hub.withdrawBySig(auth, signWithdraw(BUYER, auth));
        fund(stranger, 35);
        auth.account = stranger;
        hub.withdrawBySig(auth, signWithdraw(STRANGER, auth));
        vm.assertEq(vault(stranger), 0);
    }

    function test_ASignedWithdrawalEndsBeforeItsTime() public {
        Withdraw memory auth = withdrawal();
        bytes memory signature = signWithdraw(BUYER, auth);
        vm.warp(SOON);
        vm.expectRevert(Vault.AuthExpired.selector);
        hub.withdrawBySig(auth, signature);
        vm.warp(SOON - 1);
        hub.withdrawBySig(auth, signature);
        vm.assertEq(usd.balanceOf(buyer), 30);
    }

    function test_AContractWalletSignsByItsOwnRules() public {
        address wallet = address(new Wallet(stranger));
        fund(wallet, 35);
        Withdraw memory auth = withdrawal();
        auth.account = wallet;
        bytes memory signature = signWithdraw(BUYER, auth);
        vm.expectRevert(Vault.BadSignature.selector);
        hub.withdrawBySig(auth, signature);
        hub.withdrawBySig(auth, signWithdraw(STRANGER, auth));
        vm.assertEq(usd.balanceOf(buyer), 30);
    }

    /// EIP-7702: an account with delegated code keeps its key.
    function test_ADelegatedAccountStillSignsWithItsKey() public {
        vm.etch(buyer, hex"fe");
        Withdraw memory auth = withdrawal();
        hub.withdrawBySig(auth, signWithdraw(BUYER, auth));
        vm.assertEq(usd.balanceOf(buyer), 30);
    }

    // ---- token -------------------------------------------------------------------------------

    function test_TheTestDollarShowsWhatUsdcShows() public view {
        vm.assertEq(usd.decimals(), 6);
        vm.assertEq(usd.version(), "2");
        vm.assertEq(
            usd.DOMAIN_SEPARATOR(),
            keccak256(
                abi.encode(
                    keccak256(
                        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                    ),
                    keccak256("Test USD"),
                    keccak256("2"),
                    block.chainid,
                    address(usd)
                )
            )
        );
    }
}
