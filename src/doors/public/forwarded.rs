//! What proxies write of whom they forward: `X-Forwarded-For`, and `Forwarded` (RFC 7239). Read by hand: the few crates that do
//! are silent on what a broken element means, and here that decides whom a limit counts.

use std::net::{IpAddr, SocketAddr};

use http::header::{GetAll, HeaderValue};

/// One hop, as its proxy named it; none = it hides it, or it cannot be read.
type Hop = Option<IpAddr>;

/// The hops of `X-Forwarded-For`, the nearest last. Several headers count as one.
pub(super) fn x_forwarded_for(values: GetAll<'_, HeaderValue>) -> Vec<Hop> {
    let mut hops = Vec::new();
    for value in values {
        match value.to_str() {
            Ok(text) => hops.extend(text.split(',').map(|hop| address(hop.trim()))),
            Err(_) => hops.push(None),
        }
    }
    hops
}

/// The hops of `Forwarded`, the nearest last: the `for` of each element. A header that breaks the grammar is one that
/// cannot be read, as a whole: where a quote is left open, nobody knows what is in it.
pub(super) fn forwarded(values: GetAll<'_, HeaderValue>) -> Vec<Hop> {
    let mut hops = Vec::new();
    for value in values {
        match value.to_str().ok().and_then(elements) {
            Some(more) => hops.extend(more),
            None => hops.push(None),
        }
    }
    hops
}

/// An address with or without a port; an IPv6 one may be in brackets, and has to be where there is a port.
fn address(text: &str) -> Hop {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = match inner {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    };
    let ip = ip.or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()));
    ip.map(|ip| ip.to_canonical())
}

/// The elements of one `Forwarded` header (RFC 7239 section 4); none = it is malformed.
fn elements(text: &str) -> Option<Vec<Hop>> {
    let (mut hops, mut rest) = (Vec::new(), text);
    loop {
        let mut hop = None;
        loop {
            let (pair, after) = pair(rest)?;
            rest = after;
            if let Some((name, value)) = pair
                && name.eq_ignore_ascii_case("for")
            {
                hop = address(&value);
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        hops.push(hop);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(hops),
        }
    }
}

/// One `name=value`, or nothing, up to the `;`, the `,` or the end behind it.
fn pair(text: &str) -> Option<(Option<(&str, String)>, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    let name_end = text.find(['=', ';', ',']).unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let Some(rest) = rest.strip_prefix('=') else {
        // An empty element or pair is allowed by the grammar's lists; a name alone is not.
        return name.trim_end().is_empty().then_some((None, rest));
    };
    let (value, rest) = match rest.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = rest.find([';', ',', ' ', '\t', '"']).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        }
    };
    let rest = rest.trim_start_matches([' ', '\t']);
    let ends = rest.is_empty() || rest.starts_with([';', ',']);
    ends.then_some((Some((name, value)), rest))
}

/// A quoted string from behind its first quote, and what is behind its last.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_header_holds_is_read_or_not_without_a_panic(bytes in any::<Vec<u8>>()) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append("forwarded", value);
                let all = || headers.get_all("forwarded");
                prop_assert!(!x_forwarded_for(all()).is_empty() && !forwarded(all()).is_empty());
            }
        }

        /// What a client sends comes before what its proxy adds.
        #[test]
        fn nothing_that_a_client_sends_changes_what_its_proxy_says(
            client in "[ -~]{0,40}",
            port in any::<u16>(),
            quoted in any::<bool>(),
        ) {
            let said: IpAddr = "1.2.3.4".parse().expect("an address");
            let last = |name: &'static str, text: String| {
                let mut headers = HeaderMap::new();
                headers.append(name, text.parse().expect("a header value"));
                let hops = match name {
                    "forwarded" => forwarded(headers.get_all(name)),
                    _ => x_forwarded_for(headers.get_all(name)),
                };
                hops.last().copied().flatten()
            };
            prop_assert_eq!(last("x-forwarded-for", format!("{client}, 1.2.3.4:{port}")), Some(said));
            let proxy = match quoted {
                true => format!("for=\"1.2.3.4:{port}\";proto=\"https\""),
                false => "for=1.2.3.4".to_owned(),
            };
            // An open quote makes it unreadable, which is told as such; never somebody else's address.
            let read = last("forwarded", format!("{client}, {proxy}"));
            prop_assert!(read == Some(said) || read.is_none(), "{:?}", read);
        }
    }
}
