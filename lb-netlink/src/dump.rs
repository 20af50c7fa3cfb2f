use crate::{Answer, Message, Result, messages};

/// Reads the datagrams of one dump.
#[derive(Debug)]
pub(crate) struct DumpReader {
    sequence: u32,
    interrupted: bool,
}

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DumpEnd {
    /// Every message belongs to one state.
    Consistent,
    /// Objects changed meanwhile: some may be missing, some may be there twice.
    Interrupted,
}

impl DumpReader {
    /// For the dump that the request with this number asked for.
    pub(crate) fn new(sequence: u32) -> Self {
        Self { sequence, interrupted: false }
    }

    /// Hands every message of `datagram` to `each`; says how the dump ended if it ends with this datagram.
    ///
    /// A change sets `NLM_F_DUMP_INTR` in the messages that follow it, the end included: see
    /// [`nl_dump_check_consistent`].
    ///
    /// [`nl_dump_check_consistent`]: https://elixir.bootlin.com/linux/v6.18/source/include/net/netlink.h
    pub(crate) fn take(&mut self, datagram: &[u8], mut each: impl FnMut(Message<'_>)) -> Result<Option<DumpEnd>> {
        for message in messages(datagram).filter(|message| message.sequence == self.sequence) {
            self.interrupted |= message.is_interrupted();
            match message.answer() {
                Answer::Message(message) => each(message),
                Answer::Done if self.interrupted => return Ok(Some(DumpEnd::Interrupted)),
                Answer::Done => return Ok(Some(DumpEnd::Consistent)),
                Answer::Refused(refused) => return Err(refused.into()),
                Answer::Overrun => self.interrupted = true,
                Answer::Acknowledged => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_DUMP_INTR;
    use nix::libc;

    use super::*;
    use crate::Writer;

    const SEQUENCE: u32 = 9;
    const OBJECT: u16 = 77;

    fn datagram(messages: &[(i32, u16, i32)]) -> Vec<u8> {
        let each = |&(kind, flags, code): &(i32, u16, i32)| {
            let mut writer = Writer::default();
            writer.message(u16::try_from(kind).unwrap(), flags, &code.to_ne_bytes(), |_| {});
            writer.finish(SEQUENCE)
        };
        messages.iter().flat_map(each).collect()
    }

    fn read(datagrams: &[Vec<u8>]) -> (usize, Result<Option<DumpEnd>>) {
        let (mut reader, mut count) = (DumpReader::new(SEQUENCE), 0);
        for datagram in datagrams {
            match reader.take(datagram, |_| count += 1) {
                Ok(None) => {}
                end => return (count, end),
            }
        }
        (count, Ok(None))
    }

    #[test]
    fn a_dump_that_changes_meanwhile_is_interrupted_wherever_the_kernel_says_so() {
        let object = |flags| (i32::from(OBJECT), flags, 0);
        let end = |flags| (libc::NLMSG_DONE, flags, 0);
        let consistent = [datagram(&[object(0), object(0)]), datagram(&[end(0)])];
        assert!(matches!(read(&consistent), (2, Ok(Some(DumpEnd::Consistent)))));
        let in_the_middle = [datagram(&[object(0), object(NLM_F_DUMP_INTR)]), datagram(&[object(0), end(0)])];
        assert!(matches!(read(&in_the_middle), (3, Ok(Some(DumpEnd::Interrupted)))));
        let at_the_end = [datagram(&[object(0), end(NLM_F_DUMP_INTR)])];
        assert!(matches!(read(&at_the_end), (1, Ok(Some(DumpEnd::Interrupted)))));
        let overrun = [datagram(&[object(0), (libc::NLMSG_OVERRUN, 0, 0), end(0)])];
        assert!(matches!(read(&overrun), (1, Ok(Some(DumpEnd::Interrupted)))));
        assert!(matches!(read(&[datagram(&[object(0)])]), (1, Ok(None))));
    }

    #[test]
    fn a_dump_may_fail_at_once_or_at_its_end() {
        for kind in [libc::NLMSG_ERROR, libc::NLMSG_DONE] {
            let (_, end) = read(&[datagram(&[(kind, 0, -libc::EOPNOTSUPP)])]);
            assert_eq!(end.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
        }
    }

    #[test]
    fn answers_to_an_earlier_request_are_passed_over() {
        let other = DumpReader::new(SEQUENCE + 1).take(&datagram(&[(libc::NLMSG_DONE, 0, 0)]), |_| {});
        assert_eq!(other.unwrap(), None);
    }
}
