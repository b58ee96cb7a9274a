//! The next best for every place, made ready while nothing is lost: connected, its payment agreed,
//! checked. Nothing is reserved there and nothing kept open but the connection.

use std::collections::BTreeSet;

use super::find::{Finder, NO_HOP};
use super::{Candidate, Want};
use crate::pipeline::patron::Patron;
use crate::pipeline::session::Hop;
use crate::protocol::stage::StageSession;
use crate::types::PeerId;

impl Finder {
    /// Makes ready who would take the places of `hops` if these were lost, one after the other.
    pub(super) async fn ready_spares(
        self,
        hops: Vec<Hop>,
        not: BTreeSet<PeerId>,
        positions_max: u32,
    ) {
        for hop in hops {
            let mut want = Want {
                id: NO_HOP,
                session: StageSession([0; 16]),
                first: hop.first,
                end: hop.end,
                positions_max,
                wire: self.settings.wire,
                not: not.clone(),
                patron: Patron::default(),
            };
            want.not.insert(hop.peer);
            // The place may be one for two shorter stages.
            while want.first < want.end {
                let candidates = self.source.candidates(&want).into_iter();
                let fits = |at: &Candidate| at.end > want.first && !want.not.contains(&at.peer);
                let Some(spare) = candidates.into_iter().find(fits) else {
                    break;
                };
                let (peer, end) = (spare.peer, spare.end);
                let warmed = async {
                    self.source.warm(spare.clone()).await?;
                    self.check(&want, &spare).await
                };
                match warmed.await {
                    Ok(()) => {
                        tracing::debug!(%peer, first = want.first, end, "a spare stage is ready");
                        want.first = end;
                    }
                    Err(error) => {
                        tracing::debug!(%peer, %error, "no spare stage");
                        want.not.insert(peer);
                    }
                }
            }
        }
    }
}
