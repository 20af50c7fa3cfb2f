use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NetlinkDeserializable, NetlinkHeader};
use nix::libc;

use crate::{Error, KernelError, Result, attributes, string};

/// `sizeof(struct nlmsghdr)`.
pub const HEADER: usize = 16;

/// Type of the attribute of an error that explains it.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type.
    pub kind: u16,
    /// Flags of the header, `NLM_F_…`.
    pub flags: u16,
    /// Number of the request that the message answers; 0 in a notification.
    pub sequence: u32,
    /// Address of the socket whose request caused the message.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// What a message means as the answer to a request.
#[derive(Debug)]
pub enum Answer<'a> {
    /// The request was successful.
    Acknowledged,
    /// The request was refused, or the dump failed.
    Refused(KernelError),
    /// The dump ends here.
    Done,
    /// The kernel lost a part of the dump.
    Overrun,
    /// A message of the subsystem.
    Message(Message<'a>),
}

impl<'a> Message<'a> {
    /// What the message means as an answer.
    #[must_use]
    pub fn answer(self) -> Answer<'a> {
        match (i32::from(self.kind), self.error()) {
            (libc::NLMSG_ERROR | libc::NLMSG_DONE, Some(refused)) => Answer::Refused(refused),
            (libc::NLMSG_ERROR, None) => Answer::Acknowledged,
            (libc::NLMSG_DONE, None) => Answer::Done,
            (libc::NLMSG_OVERRUN, _) => Answer::Overrun,
            _ => Answer::Message(self),
        }
    }

    /// The message as one of a subsystem.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn decode<M: NetlinkDeserializable>(&self) -> Result<M> {
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (self.kind, self.flags);
        (header.sequence_number, header.port_number) = (self.sequence, self.port);
        header.length = u32::try_from(HEADER + self.payload.len()).unwrap_or(u32::MAX);
        let malformed = |source| Error::Malformed { kind: self.kind, source: Box::new(source) };
        M::deserialize(&header, self.payload).map_err(malformed)
    }

    /// Whether objects changed while the dump with this message was read, so that it may show neither the old nor the
    /// new ones.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// The error in the first four bytes: a negative number, 0 where there is none.
    fn error(&self) -> Option<KernelError> {
        let code = i32::from_ne_bytes(*self.payload.first_chunk()?);
        (code < 0).then(|| KernelError::explained(code.saturating_neg(), self.explanation()))
    }

    /// With `NETLINK_CAP_ACK` the header of the request, without its payload, lies between the number and the
    /// attributes.
    fn explanation(&self) -> Option<String> {
        let explained = self.flags & NLM_F_ACK_TLVS != 0;
        let found = attributes(self.payload.get(4 + HEADER..).filter(|_| explained)?).find(NLMSGERR_ATTR_MSG)?;
        string(found).map(str::to_owned)
    }
}

/// The messages of a datagram, up to the first that is not a whole one.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = length(rest)?;
        let (bytes, behind) = rest.split_at(length);
        rest = behind.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            port: u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            payload: &bytes[HEADER..],
        })
    })
}

/// Length of the first message, if it is a whole one.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    (length >= HEADER && length <= bytes.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;

    fn error(code: i32, flags: u16, explanation: Option<&str>) -> Vec<u8> {
        let mut writer = Writer::default();
        let mut fixed = code.to_ne_bytes().to_vec();
        fixed.extend([0; HEADER]);
        writer.message(libc::NLMSG_ERROR as u16, flags, &fixed, |w| {
            explanation.iter().for_each(|text| w.put_str(NLMSGERR_ATTR_MSG, text));
        });
        writer.finish(3)
    }

    #[test]
    fn an_error_has_a_number_and_the_kernels_words() {
        let words = |flags| {
            let bytes = error(-libc::ENOENT, flags, Some("no such chain"));
            match messages(&bytes).next().unwrap().answer() {
                Answer::Refused(refused) => (refused.errno(), refused.explanation().map(str::to_owned)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(words(NLM_F_ACK_TLVS), (libc::ENOENT, Some("no such chain".into())));
        assert_eq!(words(0), (libc::ENOENT, None));
        let bytes = error(0, 0, None);
        assert!(matches!(messages(&bytes).next().unwrap().answer(), Answer::Acknowledged));
    }

    #[test]
    fn messages_end_where_a_length_makes_no_sense() {
        let whole = error(0, 0, None);
        let two = [whole.clone(), whole.clone()].concat();
        assert_eq!(messages(&two).map(|message| message.sequence).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(messages(&two[..two.len() - 1]).count(), 1);
        for length in [0u32, 15, 400] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
    }
}
