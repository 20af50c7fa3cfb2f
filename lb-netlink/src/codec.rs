//! Messages and attributes as bytes.

use netlink_packet_core::NetlinkSerializable;

use crate::message::length;

/// Attribute types carry this bit when attributes are nested inside.
const NESTED: u16 = 0x8000;

/// Writes messages, one behind the other, for one datagram.
///
/// [`finish`](Self::finish) numbers them: an answer names its request by that number.
///
/// ```
/// use lb_netlink::{Writer, attributes, messages, string};
///
/// let mut writer = Writer::default();
/// writer.message(7, 0, &[], |w| w.put_str(1, "lb"));
/// let bytes = writer.finish(40);
/// let message = messages(&bytes).next().expect("there is one");
/// assert_eq!((message.kind, message.sequence), (7, 40));
/// assert_eq!(attributes(message.payload).find(1).and_then(string), Some("lb"));
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    messages: u32,
    last: usize,
}

impl Writer {
    /// Writes one message: the header with `flags` (`NLM_F_…`), the subsystem's own `fixed` header, and the attributes
    /// that `attributes` writes.
    pub fn message(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.align();
        attributes(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.last = start;
        self.messages += 1;
    }

    /// Writes a message of a subsystem.
    pub fn push(&mut self, flags: u16, message: &impl NetlinkSerializable) {
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.message(message.message_type(), flags, &bytes, |_| {});
    }

    /// Writes an attribute of at most 65,531 bytes.
    pub fn put(&mut self, kind: u16, payload: &[u8]) {
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.align();
    }

    /// Writes attributes that are encoded already.
    pub fn bytes(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
        self.align();
    }

    /// Writes a 32-bit number in network byte order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Writes a 64-bit number in network byte order.
    pub fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Writes a string with its terminating zero.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let start = self.open(kind, 0);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Writes an attribute that holds the attributes that `inner` writes: at most 64 KiB.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.open(kind, NESTED);
        inner(self);
        self.close(start);
    }

    /// Sets `flags` in the message written last.
    pub fn flag_last(&mut self, flags: u16) {
        let at = self.last + 6;
        if let Some(field) = self.bytes.get_mut(at..at + 2) {
            let now = u16::from_ne_bytes([field[0], field[1]]) | flags;
            field.copy_from_slice(&now.to_ne_bytes());
        }
    }

    /// Number of messages so far.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Number of bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The datagram, with `first` as the sequence number of the first message.
    #[must_use]
    pub fn finish(mut self, first: u32) -> Vec<u8> {
        let mut at = 0;
        while let Some(length) = length(&self.bytes[at.min(self.bytes.len())..]) {
            let field = &mut self.bytes[at + 8..at + 12];
            let index = u32::from_ne_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&first.wrapping_add(index).to_ne_bytes());
            at += length.next_multiple_of(4);
        }
        self.bytes
    }

    fn open(&mut self, kind: u16, flags: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | flags).to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `bytes`, up to the first that is not well formed.
#[must_use]
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { bytes }
}

/// Attributes: the type without its flags, and the payload.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Payload of the first attribute of a type.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self.clone(), |(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    /// Payload of an attribute that is nested in others; `path` has the type on each level, from the outermost in.
    #[must_use]
    pub fn path(&self, path: &[u16]) -> Option<&'a [u8]> {
        let (first, rest) = path.split_first()?;
        let payload = self.find(*first)?;
        if rest.is_empty() { Some(payload) } else { attributes(payload).path(rest) }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1, ..] = *self.bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = self.bytes.get(4..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, payload))
    }
}

/// The 16-bit number in network byte order that `payload` begins with.
#[must_use]
pub fn u16_be(payload: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(payload.get(..2)?.try_into().ok()?))
}

/// The 32-bit number in network byte order that `payload` begins with.
#[must_use]
pub fn u32_be(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.get(..4)?.try_into().ok()?))
}

/// The 64-bit number in network byte order that `payload` begins with.
#[must_use]
pub fn u64_be(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}

/// The string up to the first zero, if it is UTF-8.
#[must_use]
pub fn string(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.split(|&b| b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HEADER, messages};

    #[test]
    fn what_is_written_can_be_read_back() {
        let mut writer = Writer::default();
        writer.message(7, 1, &[9, 9], |w| {
            w.put_str(1, "lb");
            w.nest(2, |w| w.put_u32(3, 0x0102_0304));
        });
        let bytes = writer.finish(40);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.payload.len() + HEADER, message.sequence), (bytes.len(), 40));
        let found = attributes(&message.payload[4..]);
        assert_eq!(found.find(1).and_then(string), Some("lb"));
        assert_eq!(found.path(&[2, 3]).and_then(u32_be), Some(0x0102_0304));
        assert_eq!(found.path(&[2, 4]), None);
    }

    #[test]
    fn sequence_numbers_count_the_messages() {
        let mut writer = Writer::default();
        writer.message(1, 0, &[], |_| {});
        writer.message(2, 0, &[], |w| w.put(1, &[1, 2, 3]));
        writer.flag_last(4);
        let bytes = writer.finish(u32::MAX);
        assert_eq!(bytes[8..12], u32::MAX.to_ne_bytes());
        assert_eq!(bytes[HEADER + 8..HEADER + 12], 0u32.to_ne_bytes());
        assert_eq!(bytes[6..8], 0u16.to_ne_bytes());
        assert_eq!(bytes[HEADER + 6..HEADER + 8], 4u16.to_ne_bytes());
    }

    #[test]
    fn malformed_attributes_end_the_walk() {
        for bytes in [&[][..], &[1, 0, 0, 0], &[200, 0, 1, 0, 0], &[3], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).next(), None, "{bytes:?}");
        }
    }
}
