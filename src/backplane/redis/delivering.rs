use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

use super::link::{Link, LinkParts};
use crate::backplane::envelope::kept;
use crate::backplane::{Arrivals, Envelope, EnvelopeError, Sealer};
use crate::model::{Address, Place, Target};

/// Something that was published to a channel.
pub(super) struct Pushed {
    channel: Vec<u8>,
    bytes: Bytes,
    /// Its bytes' place in the queue.
    _room: OwnedSemaphorePermit,
}

impl Pushed {
    pub(super) fn new(channel: Vec<u8>, bytes: Bytes, room: OwnedSemaphorePermit) -> Self {
        Self {
            channel,
            bytes,
            _room: room,
        }
    }
}

/// Takes what came over a link to the node, in order.
pub(super) struct Delivering {
    pub(super) link: Weak<Link>,
    pub(super) parts: LinkParts,
    pub(super) arrivals: Arc<dyn Arrivals>,
    /// Told when something found no room.
    pub(super) dropped: Arc<Notify>,
}

impl Delivering {
    /// Ends once nothing more can come.
    pub(super) async fn run(self, mut received: mpsc::Receiver<Pushed>) {
        // What is to be delivered before it is told that something found no room: all that did before that.
        let mut before: Option<usize> = None;
        loop {
            if before == Some(0) {
                before = None;
                let followed = self.link.upgrade().map(|link| link.followed());
                self.arrivals.missed(followed.unwrap_or_default()).await;
            }
            tokio::select! {
                biased;
                () = self.dropped.notified(), if before.is_none() => before = Some(received.len()),
                pushed = received.recv() => match pushed {
                    Some(pushed) => {
                        self.deliver(pushed).await;
                        before = before.map(|before| before.saturating_sub(1));
                    }
                    None => return,
                },
            }
        }
    }

    async fn deliver(&self, pushed: Pushed) {
        let Pushed {
            channel,
            bytes,
            _room,
        } = pushed;
        let parts = &self.parts;
        if channel == parts.probe.as_bytes() {
            if let (Some(link), Some(number)) = (self.link.upgrade(), probe_number(&bytes)) {
                link.probe_came(number);
            }
            return;
        }
        let Some(address) = parts.keys.address(&channel) else {
            return parts.metrics.dropped("address");
        };
        if kept::is_new_epoch(&bytes) {
            return self.arrivals.missed(vec![address]).await;
        }
        let opened = kept::split(bytes)
            .and_then(|(place, bytes)| open(&parts.sealer, &address, place, bytes));
        match opened {
            Ok(envelope) => {
                parts.metrics.received(&address);
                self.arrivals.arrive(envelope).await;
            }
            Err(error) => {
                parts.metrics.dropped(error.name());
                tracing::debug!(%address, reason = error.name(), "an envelope was dropped");
            }
        }
    }
}

/// The envelope, if it is for the address to which it came, and one that may have a place.
pub(super) fn open(
    sealer: &Sealer,
    address: &Address,
    place: Option<Place>,
    bytes: Bytes,
) -> Result<Envelope, EnvelopeError> {
    let mut envelope = sealer.open(address, bytes)?;
    let fits = match &mut envelope {
        Envelope::Message(message) => {
            message.place = place;
            match &message.target {
                Target::One(target) => target == address,
                Target::Users(_) => *address == Address::Everyone && place.is_none(),
            }
        }
        Envelope::Question(_) => place.is_none(),
        Envelope::Answer(_) => matches!(address, Address::Node(_)) && place.is_none(),
    };
    fits.then_some(envelope).ok_or(EnvelopeError::Malformed)
}

fn probe_number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
