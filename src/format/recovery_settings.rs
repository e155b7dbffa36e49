//! Recovery settings: what a site that asks for a domain leaves for the one that owns it, so that the old site can follow
//! the domain afterwards. The text is for the control plane; the format only carries it.
//!
//! Numbered without gaps within a domain, each created by whoever wins its number and never changed. The last one of a site
//! counts; one without text takes those before it back.

use crate::ids::{DomainId, Name, Time};

use super::author::{NAME_FIELD_LEN, put_text, take_name};
use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;

/// Most bytes of the text.
pub const MAX_RECOVERY_SETTINGS_TEXT: usize = 1 << 20;
/// Most bytes of recovery settings.
pub const MAX_RECOVERY_SETTINGS_LEN: u64 = (RecoverySettingsHeader::LEN + MAX_RECOVERY_SETTINGS_TEXT) as u64;
const WHAT: &str = "recovery settings";

layout! { header magic::RECOVERY_SETTINGS;
    /// First bytes of recovery settings; the text follows.
    pub(crate) struct RecoverySettingsHeader: 352 {
        /// Bytes of the site's name.
        10 => site_len: u16,
        /// Bytes of the text; zero where earlier ones are taken back.
        12 => text_len: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Its number.
        32 => n: u64,
        /// When it was written, by the store's clock as far as the writer knew it.
        40 => at: Time,
        /// xxh3-128 of the text.
        48 => text_digest: Digest,
        /// Drawn by the writer, to know its own again.
        64 => nonce: [u8; 16],
        /// Site that wrote it.
        80 => site: [u8; 256],
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// Domain.
    pub domain: DomainId,
    /// Its number, from 1.
    pub n: u64,
    /// Site that wrote it.
    pub site: Name,
    /// When, by the store's clock as far as the writer knew it.
    pub at: Time,
    /// Drawn by the writer.
    pub nonce: [u8; 16],
    /// The text; empty where earlier ones are taken back.
    pub text: String,
}

impl RecoverySettings {
    /// The object's bytes.
    ///
    /// # Errors
    /// Where the text is longer than [`MAX_RECOVERY_SETTINGS_TEXT`].
    pub fn encode(&self) -> DecodeResult<Vec<u8>> {
        let len = self.text.len();
        if len > MAX_RECOVERY_SETTINGS_TEXT {
            let why = format!("{len} bytes of text, at most {MAX_RECOVERY_SETTINGS_TEXT}");
            return Err(DecodeError::value(WHAT, why));
        }
        let (site, site_len) = put_text::<NAME_FIELD_LEN>(self.site.as_str());
        let header = RecoverySettingsHeader {
            site_len,
            // Below its limit.
            text_len: len as u32,
            domain: self.domain,
            n: self.n,
            at: self.at,
            text_digest: xxh3_128(self.text.as_bytes()),
            nonce: self.nonce,
            site,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(self.text.as_bytes());
        Ok(bytes)
    }

    /// Decodes number `n` of `domain`.
    ///
    /// # Errors
    /// Where the bytes are damaged, or another one's.
    pub fn decode(bytes: &[u8], domain: DomainId, n: u64) -> DecodeResult<RecoverySettings> {
        let found = RecoverySettings::decode_any(bytes)?;
        if (found.domain, found.n) != (domain, n) {
            let (found, wanted) = (format!("{} of {}", found.n, found.domain), format!("{n} of {domain}"));
            return Err(DecodeError::identity(WHAT, found, wanted));
        }
        Ok(found)
    }

    /// Decodes whatever recovery settings stand there.
    ///
    /// # Errors
    /// Where the bytes are damaged.
    pub fn decode_any(bytes: &[u8]) -> DecodeResult<RecoverySettings> {
        let f = RecoverySettingsHeader::decode(bytes)?;
        let text = bytes.get(RecoverySettingsHeader::LEN..).unwrap_or_default();
        if text.len() != f.text_len as usize || text.len() > MAX_RECOVERY_SETTINGS_TEXT {
            return Err(DecodeError::value(WHAT, format!("{} bytes of text, must be {}", text.len(), f.text_len)));
        }
        if xxh3_128(text) != f.text_digest {
            return Err(DecodeError::value(WHAT, "the text does not match its digest"));
        }
        let text = std::str::from_utf8(text).map_err(|e| DecodeError::value(WHAT, format!("text: {e}")))?;
        Ok(RecoverySettings {
            domain: f.domain,
            n: f.n,
            site: take_name(WHAT, &f.site, f.site_len)?,
            at: f.at,
            nonce: f.nonce,
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(text: &str) -> RecoverySettings {
        RecoverySettings {
            domain: DomainId::from_bytes([1; 16]),
            n: 3,
            site: Name::new("harbour").unwrap(),
            at: Time::from_millis(7),
            nonce: [5; 16],
            text: text.to_owned(),
        }
    }

    #[test]
    fn comes_back_as_what_it_was_and_damage_is_noticed() {
        for text in ["", "{\"a\":1}"] {
            let it = settings(text);
            let bytes = it.encode().unwrap();
            assert_eq!(RecoverySettings::decode(&bytes, it.domain, 3).unwrap(), it);
            assert!(RecoverySettings::decode(&bytes, it.domain, 4).is_err());
            assert!(RecoverySettings::decode(&bytes, DomainId::from_bytes([2; 16]), 3).is_err());
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(RecoverySettings::decode_any(&bad).is_err(), "bit {bit}");
            }
            assert!(RecoverySettings::decode_any(&bytes[..bytes.len() - 1]).is_err());
            assert!(RecoverySettings::decode_any(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_not_written() {
        assert!(settings(&"x".repeat(MAX_RECOVERY_SETTINGS_TEXT)).encode().is_ok());
        assert!(settings(&"x".repeat(MAX_RECOVERY_SETTINGS_TEXT + 1)).encode().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(RecoverySettings::decode_any(&bytes).is_err());
        }
    }
}
