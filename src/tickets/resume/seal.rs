use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;

use super::store::ResumeId;
use super::{PREFIX, Pass, RESUME_MAX_BYTES, SealError};
use crate::model::{
    ChannelName, ConnectionId, DeviceName, Grant, Lineage, Origin, Resumes, Secret, UserId,
};

/// What separates this use of the cluster's secret from others.
const PURPOSE: &[u8] = b"tidings resume 1";
/// Bytes of the random id that find a ticket's key; the rest is its nonce.
const KEY_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// The cluster's secret, as far as resume tickets need it.
#[derive(Clone)]
pub(super) struct Sealing(Prk);

/// What is sealed. Numbers are for ever: a field that goes leaves its number unused.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, optional, tag = "2")]
    device: Option<String>,
    #[prost(string, optional, tag = "3")]
    claims: Option<String>,
    #[prost(string, optional, tag = "4")]
    origin: Option<String>,
    /// Granted and subscribed to; most are, so they are named once.
    #[prost(string, repeated, tag = "5")]
    both: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    granted: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    subscribed: Vec<String>,
    #[prost(bytes = "vec", tag = "8")]
    replaces: Vec<u8>,
    /// Left out if it is the one that is replaced.
    #[prost(bytes = "vec", optional, tag = "9")]
    first: Option<Vec<u8>>,
    #[prost(uint64, tag = "10")]
    since: u64,
    #[prost(uint64, optional, tag = "11")]
    ends: Option<u64>,
    #[prost(uint64, tag = "12")]
    expires: u64,
}

/// What was sealed.
pub(super) struct Opened {
    pub(super) id: ResumeId,
    pub(super) grant: Grant,
    pub(super) resumes: Resumes,
    pub(super) expires: u64,
}

impl Sealing {
    pub(super) fn new(secret: &Secret) -> Self {
        let salt = Salt::none(HKDF_SHA256);
        Self(salt.extract(secret.expose().as_bytes()))
    }

    /// The key of one ticket. Each has its own, by a half of its 192 random bits, and the other half is the nonce: 96
    /// random bits alone would wear one key out after 2^32 tickets (NIST SP 800-38D, section 8.3; the construction is that
    /// of XAES-256-GCM, c2sp.org/XAES-256-GCM).
    fn key(&self, id: &ResumeId) -> (LessSafeKey, Nonce) {
        let (of_key, nonce) = id.0.split_at(KEY_BYTES);
        let info = [PURPOSE, of_key];
        let okm = self.0.expand(&info, &AES_256_GCM);
        let key = UnboundKey::from(okm.expect("HKDF-SHA256 gives 32 bytes"));
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("12 bytes are left");
        (LessSafeKey::new(key), nonce)
    }

    /// The text of a ticket for a session.
    pub(super) fn seal(&self, pass: &Pass, expires: u64) -> Result<Secret, SealError> {
        let mut id = ResumeId([0; ResumeId::BYTES]);
        getrandom::fill(&mut id.0).map_err(|e| SealError::Random(e.to_string()))?;
        let mut sealed = Body::of(pass, expires).encode_to_vec();
        let (key, nonce) = self.key(&id);
        key.seal_in_place_append_tag(nonce, Aad::from(PREFIX), &mut sealed)
            .map_err(|_| SealError::TooLarge)?;
        sealed.splice(..0, id.0);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed));
        match text.len() <= RESUME_MAX_BYTES {
            true => Ok(Secret::new(text)),
            false => Err(SealError::TooLarge),
        }
    }

    /// What is in a ticket; `None` if another secret sealed it, or nobody.
    pub(super) fn open(&self, bytes: &Sealed) -> Option<Opened> {
        let mut sealed = bytes.sealed.clone();
        let (key, nonce) = self.key(&bytes.id);
        let body = key
            .open_in_place(nonce, Aad::from(PREFIX), &mut sealed)
            .ok()?;
        Body::decode(&*body).ok()?.parse(bytes.id)
    }
}

/// The bytes of a ticket, unopened.
pub(super) struct Sealed {
    id: ResumeId,
    sealed: Vec<u8>,
}

impl Sealed {
    /// `None` if it cannot be a ticket.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > RESUME_MAX_BYTES {
            return None;
        }
        let text = text.strip_prefix(PREFIX)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, sealed) = bytes.split_first_chunk()?;
        (sealed.len() > TAG_BYTES).then(|| Self {
            id: ResumeId(*id),
            sealed: sealed.to_vec(),
        })
    }
}

impl Body {
    fn of(pass: &Pass, expires: u64) -> Self {
        let names = |of: &[ChannelName], others: &[ChannelName], in_both: bool| {
            let wanted = of.iter().filter(|c| others.contains(c) == in_both);
            wanted.map(ToString::to_string).collect()
        };
        let Lineage { first, since, ends } = pass.lineage;
        Self {
            user: pass.user.to_string(),
            device: pass.device.as_ref().map(ToString::to_string),
            claims: pass.claims.as_deref().map(str::to_owned),
            origin: pass.origin.as_ref().map(ToString::to_string),
            both: names(&pass.granted, &pass.subscribed, true),
            granted: names(&pass.granted, &pass.subscribed, false),
            subscribed: names(&pass.subscribed, &pass.granted, false),
            replaces: pass.connection.to_bytes().into(),
            first: (first != pass.connection).then(|| first.to_bytes().into()),
            since,
            ends,
            expires,
        }
    }

    fn parse(self, id: ResumeId) -> Option<Opened> {
        let connection = |bytes: &[u8]| bytes.try_into().ok().map(ConnectionId::from_bytes);
        let channels = |of: &[String]| {
            let names = self.both.iter().chain(of);
            names
                .map(|name| ChannelName::parse(name).ok())
                .collect::<Option<Vec<_>>>()
        };
        let replaces = connection(&self.replaces)?;
        let claims = self.claims.as_deref().map(Grant::check_claims).transpose();
        let device = self.device.as_deref().map(DeviceName::parse).transpose();
        let origin = self.origin.as_deref().map(Origin::parse).transpose();
        let grant = Grant {
            device: device.ok()?,
            channels: channels(&self.granted)?.into(),
            claims: claims.ok()?,
            origins: origin.ok()?.into_iter().collect(),
            ..Grant::of(UserId::parse(&self.user).ok()?)
        };
        let lineage = Lineage {
            first: match &self.first {
                Some(first) => connection(first)?,
                None => replaces,
            },
            since: self.since,
            ends: self.ends,
        };
        Some(Opened {
            id,
            grant,
            resumes: Resumes {
                lineage,
                replaces: vec![replaces],
                subscribed: channels(&self.subscribed)?,
            },
            expires: self.expires,
        })
    }
}
