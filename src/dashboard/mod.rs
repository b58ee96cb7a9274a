//! L4: the page that a role shows its owner in a browser, drawn here on the server.
//!
//! `control gathers what /api says → buyer | seller lays it out → role adds what both have → html, plot draw → security headers`.
//!
//! Everything is in the binary: one page of HTML with SVG plots, a style sheet, and a script whose
//! only work is to fetch the page again. The page works without it. Invariants: no asset comes from
//! elsewhere and none is inline, which the content security policy enforces; every text passes
//! `html::escape`, because sellers choose names of models and reasons; money is printed from
//! integers. [`crate::buyer`] and [`crate::seller`] call it; it asks the
//! ledger for sums and nobody else.

mod buyer;
mod html;
mod plot;
mod role;
mod seller;
mod sums;
mod tables;
mod values;

use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, StatusCode};

pub use buyer::{BuyerView, buyer_page};
pub use role::RoleView;
pub use seller::{SellerView, seller_page};
pub use sums::{OverTime, REQUESTS_SHOWN, Sums};

/// Nothing inline, nothing foreign, in nobody's frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
     connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// A new version of the program has new assets at the same address.
const ASSET_CACHE: &str = "no-cache";

/// What the page needs, and a board for Grafana.
const ASSETS: [(&str, &str, &str); 4] = [
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("assets/style.css"),
    ),
    (
        "refresh.js",
        "text/javascript; charset=utf-8",
        include_str!("assets/refresh.js"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    (
        "grafana.json",
        "application/json",
        include_str!("assets/grafana.json"),
    ),
];

/// `GET /assets/{name}`.
pub async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => answer(kind, (*text).to_owned()),
        None => (StatusCode::NOT_FOUND, "no such asset").into_response(),
    }
}

/// The page as an answer.
#[must_use]
pub fn page(html: String) -> Response {
    answer("text/html; charset=utf-8", html)
}

fn answer(kind: &'static str, text: String) -> Response {
    let headers: [(HeaderName, &'static str); 5] = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, ASSET_CACHE),
    ];
    (headers, text).into_response()
}
