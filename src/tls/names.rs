use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// Who a client's certificate says it is. Its issuer was checked in the handshake.
///
/// A SPIFFE id (a URI, of which an X.509-SVID has exactly one) is the name where there is one; else the DNS names, in the
/// certificate's order; else, in a certificate without either, the common name. Names but for SPIFFE ids are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientNames(Vec<String>);

impl ClientNames {
    /// Reads them from a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
            return Self(Vec::new());
        };
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.map(|extension| &extension.value.general_names[..]);
        let (mut spiffe, mut dns) = (Vec::new(), Vec::new());
        for name in alternatives.unwrap_or_default() {
            match name {
                GeneralName::URI(uri) if uri.starts_with("spiffe://") => spiffe.push(*uri),
                GeneralName::DNSName(name) => dns.push(name.to_ascii_lowercase()),
                _ => {}
            }
        }
        match spiffe[..] {
            [] if !dns.is_empty() => Self(dns),
            [] => {
                let common = certificate.subject().iter_common_name();
                let common = common.filter_map(|name| name.as_str().ok());
                Self(common.take(1).map(str::to_ascii_lowercase).collect())
            }
            [id] => Self(vec![id.to_owned()]),
            // The SPIFFE X.509-SVID specification, section 2: such a certificate is to be refused.
            _ => Self(Vec::new()),
        }
    }

    /// The names, the one that counts first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl std::fmt::Display for ClientNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0[..] {
            [] => f.write_str("no usable name"),
            names => write!(f, "{names:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn names(common: Option<&str>, alternatives: &[(&str, &str)]) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        for (kind, name) in alternatives {
            let name = rcgen::string::Ia5String::try_from(*name).expect("ascii");
            params.subject_alt_names.push(match *kind {
                "dns" => SanType::DnsName(name),
                _ => SanType::URI(name),
            });
        }
        let key = KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        let names = ClientNames::of(made.der());
        names.iter().map(String::from).collect()
    }

    #[test]
    fn a_spiffe_id_wins_over_dns_names_and_these_over_the_common_name() {
        let spiffe = ("uri", "spiffe://prod/orders");
        let dns = [("dns", "Orders.internal"), ("dns", "b.internal")];
        assert_eq!(names(Some("CN"), &[]), ["cn"]);
        assert_eq!(names(Some("cn"), &dns), ["orders.internal", "b.internal"]);
        assert_eq!(names(Some("cn"), &[dns[0], spiffe]), [spiffe.1]);
        let other = ("uri", "https://orders.internal");
        assert_eq!(names(Some("cn"), &[other]), ["cn"]);
    }

    #[test]
    fn what_has_no_name_or_two_spiffe_ids_is_nobody() {
        let two = [("uri", "spiffe://a/x"), ("uri", "spiffe://a/y")];
        for names in [names(None, &[]), names(Some("cn"), &two)] {
            assert!(names.is_empty(), "{names:?}");
        }
        assert_eq!(ClientNames::of(&b"no".to_vec().into()).0, [""; 0]);
    }
}
