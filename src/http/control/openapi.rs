//! `GET /api/openapi.json`: the control API as a machine reads it.
//!
//! One file describes both roles; each port shows the paths it has. `tests/it/openapi.rs` compares
//! it with the routes in the sources.

use axum::Json;
use serde_json::Value;

use super::{ControlError, ControlResult};

const DOCUMENT: &str = include_str!("../openapi.json");
/// In each path of the document: the roles whose port has it.
const ROLES: &str = "x-roles";

/// The description for a role (`buy` or `sell`).
///
/// # Errors
/// Never in practice: the document is part of the program.
pub fn openapi(role: &str) -> ControlResult {
    let broken = |error: serde_json::Error| ControlError::Internal(error.to_string());
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(broken)?;
    if let Some(Value::Object(paths)) = document.get_mut("paths") {
        paths.retain(|_, path| {
            let roles = path.get(ROLES).and_then(Value::as_array);
            roles.is_some_and(|roles| roles.iter().any(|one| one == role))
        });
    }
    Ok(Json(document))
}
