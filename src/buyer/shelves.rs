//! Models that very many sell: a request looks at the front of a shelf, not at every offer.
//!
//! The order is [`crate::router::shortlist`]'s. It is made when a model is first asked for and again
//! in the background when it is a few seconds old, so that no request waits for ten thousand scores.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::discovery::OfferBook;
use crate::protocol::offer::SignedOffer;
use crate::router::shortlist::Shortlist;
use crate::router::{Ask, Entry, Prefer, Router, record};
use crate::tasks::{Tasks, off_thread_if};
use crate::types::{Clock, ModelId, UnixMs};

/// Up to this many offers all are looked at: cheaper than keeping an order.
const FEW_OFFERS: usize = 64;
/// An order this old is made anew, ms.
const OLD_MS: u64 = 5_000;
/// Orders kept: a size class of a model each.
const SHELVES_MAX: usize = 256;

/// A model's offers in the order in which to look at them.
pub(super) struct Shelf {
    offers: Vec<Arc<SignedOffer>>,
    order: Shortlist,
    made_ms: UnixMs,
}

impl Shelf {
    /// The first offers for which `fit` finds something, with what it found.
    pub fn fitting<T>(&self, mut fit: impl FnMut(&Arc<SignedOffer>) -> Option<T>) -> Vec<T> {
        self.order.fitting(|at| fit(self.offers.get(at)?))
    }
}

/// The shelves of the models asked for. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shelves {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    book: OfferBook,
    clock: Arc<dyn Clock>,
    kept: Mutex<LruCache<(ModelId, usize), Kept>>,
}

struct Kept {
    shelf: Arc<Shelf>,
    is_being_made: bool,
}

impl Shelves {
    pub fn new(router: Router, book: OfferBook, clock: Arc<dyn Clock>) -> Self {
        let size = NonZeroUsize::new(SHELVES_MAX).unwrap_or(NonZeroUsize::MIN);
        let kept = Mutex::new(LruCache::new(size));
        Self {
            inner: Arc::new(Inner {
                router,
                book,
                clock,
                kept,
            }),
        }
    }

    /// The shelf of a model with many offers, for inputs of `tokens`; none when there are few.
    pub fn get(
        &self,
        model: &ModelId,
        tokens: u64,
        prefer: Prefer,
        tasks: &Tasks,
    ) -> Option<Arc<Shelf>> {
        if self.inner.book.offers(model).len() <= FEW_OFFERS {
            return None;
        }
        let key = (model.clone(), record::size_of(tokens));
        let now_ms = self.inner.clock.now_ms();
        let mut kept = self.inner.kept.lock();
        if let Some(found) = kept.get_mut(&key) {
            let is_old = now_ms.saturating_sub(found.shelf.made_ms) > OLD_MS;
            if is_old && !std::mem::replace(&mut found.is_being_made, true) {
                let (inner, key) = (Arc::clone(&self.inner), key.clone());
                tasks.spawn("shelf", async move {
                    let work = move || {
                        inner.make(&key, prefer);
                    };
                    off_thread_if(true, work).await;
                });
            }
            return Some(Arc::clone(&found.shelf));
        }
        drop(kept);
        Some(self.inner.make(&key, prefer))
    }
}

impl Inner {
    fn make(&self, key: &(ModelId, usize), prefer: Prefer) -> Arc<Shelf> {
        let (model, size) = key;
        let offers = self.book.offers(model).to_vec();
        let entries: Vec<Entry> = offers
            .iter()
            .map(|offer| Entry::plain(offer.offer.seller, offer.offer.price))
            .collect();
        let ask = Ask {
            model,
            client: "",
            input_tokens: 0,
            output_max: u64::MAX,
            exact: true,
            prefer,
            deadline_s: f64::INFINITY,
            conversation: None,
            pinned: None,
        };
        let shelf = Arc::new(Shelf {
            order: self.router.shortlist(&ask, *size, &entries),
            offers,
            made_ms: self.clock.now_ms(),
        });
        let kept = Kept {
            shelf: Arc::clone(&shelf),
            is_being_made: false,
        };
        self.kept.lock().put(key.clone(), kept);
        shelf
    }
}
