//! One netlink conversation: requests out, acknowledgements and dumps in.
//!
//! Used by [`super::rtnl`] (links, addresses, routes) and [`super::nft`] (tables, rules). A [`Channel`] belongs to the
//! network namespace of the thread that opened it, for good: one opened inside a container's namespace may be used from
//! any thread. The kernel works on a request inside `send`, so all answers wait in the socket when it returns.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::Socket;

use super::error::Refusal;

/// The kernel's dumps come in datagrams of up to 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// What a socket may send at once by default, less some.
const DATAGRAM_BYTES: usize = 128 * 1024;
/// A dump that something changed under its hands is begun anew, this many times at most.
const DUMP_ATTEMPTS: usize = 16;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flags of an acknowledgement: the request is not repeated in it whole; attributes follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The attribute that holds the kernel's own words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A message to send, with the flags that go beyond "this is a request".
pub(super) struct Request<M> {
    pub(super) message: M,
    pub(super) flags: u16,
}

/// An open socket of one netlink protocol.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open(protocol: isize) -> Result<Channel, Refusal> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Both only make refusals easier to read; kernels older than ours do without.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Channel { socket, sequence: 0 })
    }

    /// This end's address: the kernel tells others by it who changed something.
    pub(super) fn port(&self) -> Result<u32, Refusal> {
        let mut address = netlink_sys::SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Sends all requests in one datagram; the kernel takes them in order and goes on past a refusal. The first refusal
    /// is the result.
    pub(super) fn execute<M: NetlinkSerializable>(&mut self, requests: Vec<Request<M>>) -> Result<(), Refusal> {
        let count = requests.len();
        let requests = requests.into_iter().map(|request| Request { flags: request.flags | NLM_F_ACK, ..request });
        let first = self.send(requests)?;
        let mut outcome = Ok(());
        let mut answered = 0;
        while answered < count {
            for answer in self.answers()? {
                if !answer.is_acknowledgement_of(first, count) {
                    continue;
                }
                answered += 1;
                outcome = outcome.and(answer.outcome());
            }
        }
        outcome
    }

    /// Sends a transaction: a begin and an end message with requests between, of which the kernel does all or none. It
    /// reports every refusal, then acknowledges the last request, where one is asked for.
    pub(super) fn transact<M: NetlinkSerializable>(
        &mut self,
        begin: M,
        requests: Vec<Request<M>>,
        end: M,
    ) -> Result<(), Refusal> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let bare = |message| Request { message, flags: 0 };
        let body = requests.into_iter().enumerate().map(|(index, request)| {
            let acknowledge = if index == last { NLM_F_ACK } else { 0 };
            Request { flags: request.flags | acknowledge, ..request }
        });
        let all = std::iter::once(bare(begin)).chain(body).chain(std::iter::once(bare(end)));
        let first = self.send(all)?;
        self.transaction_outcome(first, last)
    }

    /// `first` is the begin message's number: the request of index 0 has the next.
    fn transaction_outcome(&mut self, first: u32, last: usize) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        loop {
            for answer in self.answers()? {
                if !answer.is_acknowledgement_of(first, last + 3) {
                    continue;
                }
                outcome = outcome.and(answer.outcome());
                let number = answer.sequence.wrapping_sub(first) as usize;
                // A refusal of the whole batch comes under the begin message's number, and nothing follows it.
                if number == last + 1 || number == 0 {
                    return outcome;
                }
            }
        }
    }

    /// Asks for all objects of a kind and keeps what `keep` makes of them: tables can be large, so what is not kept is
    /// never held.
    pub(super) fn dump<M, T>(&mut self, question: M, mut keep: impl FnMut(M) -> Option<T>) -> Result<Vec<T>, Refusal>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS {
            let request = Request { message: question.clone(), flags: NLM_F_DUMP };
            let number = self.send(std::iter::once(request))?;
            let mut kept = Vec::new();
            if self.collect(number, |object| kept.extend(keep(object)))? {
                return Ok(kept);
            }
        }
        Err(Refusal::new(libc::EINTR, Some("the objects change faster than they can be listed".to_owned())))
    }

    /// Asks for one object.
    pub(super) fn get<M>(&mut self, message: M) -> Result<M, Refusal>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let number = self.send(std::iter::once(Request { message, flags: 0 }))?;
        loop {
            for answer in self.answers()? {
                if answer.sequence != number {
                    continue;
                }
                if answer.kind == NLMSG_ERROR {
                    answer.outcome()?;
                } else if let Some(object) = answer.parse()? {
                    return Ok(object);
                }
            }
        }
    }

    /// Reads a dump to its end; `false` when it is torn and must be begun anew.
    fn collect<M: NetlinkDeserializable>(&mut self, number: u32, mut each: impl FnMut(M)) -> Result<bool, Refusal> {
        let mut whole = true;
        loop {
            for answer in self.answers()? {
                if answer.sequence != number {
                    continue;
                }
                whole &= answer.flags & NLM_F_DUMP_INTR == 0;
                match answer.kind {
                    NLMSG_DONE => {
                        answer.outcome()?;
                        return Ok(whole);
                    }
                    NLMSG_ERROR => answer.outcome()?,
                    _ => answer.parse_or_skip().into_iter().for_each(&mut each),
                }
            }
        }
    }

    /// Sends messages in one datagram, numbered from the returned number on.
    fn send<M: NetlinkSerializable>(&mut self, requests: impl Iterator<Item = Request<M>>) -> Result<u32, Refusal> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(1024);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, request, self.sequence);
        }
        self.make_room_for(datagram.len())?;
        self.socket.send(&datagram, 0)?;
        Ok(first)
    }

    /// A transaction is one datagram, and a table with thousands of published ports is a large one.
    fn make_room_for(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > DATAGRAM_BYTES {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.socket, bytes * 2)?;
        }
        Ok(())
    }

    /// The messages of the next datagram.
    fn answers(&mut self) -> Result<Vec<Answer>, Refusal> {
        let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            match self.socket.recv(&mut datagram, 0) {
                Ok(_) => return Answer::split(&datagram),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn append<M: NetlinkSerializable>(datagram: &mut Vec<u8>, request: Request<M>, sequence: u32) {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(request.message));
    message.header.flags = NLM_F_REQUEST | request.flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut datagram[start..]);
}

/// One message from the kernel.
struct Answer {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Header and body.
    bytes: Vec<u8>,
}

impl Answer {
    fn split(mut datagram: &[u8]) -> Result<Vec<Answer>, Refusal> {
        let mut answers = Vec::new();
        while !datagram.is_empty() {
            let length = u32_at(datagram, 0).ok_or_else(short)? as usize;
            let bytes = datagram.get(..length).filter(|bytes| bytes.len() >= HEADER_BYTES).ok_or_else(short)?;
            answers.push(Answer {
                kind: u16_at(bytes, 4).ok_or_else(short)?,
                flags: u16_at(bytes, 6).ok_or_else(short)?,
                sequence: u32_at(bytes, 8).ok_or_else(short)?,
                bytes: bytes.to_vec(),
            });
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(answers)
    }

    fn is_acknowledgement_of(&self, first: u32, count: usize) -> bool {
        self.kind == NLMSG_ERROR && (self.sequence.wrapping_sub(first) as usize) < count
    }

    /// What an acknowledgement or the end of a dump says.
    fn outcome(&self) -> Result<(), Refusal> {
        match u32_at(&self.bytes, HEADER_BYTES).ok_or_else(short)? as i32 {
            0 => Ok(()),
            negative => Err(Refusal::new(-negative, self.words())),
        }
    }

    /// The kernel's own words about a refusal.
    fn words(&self) -> Option<String> {
        if self.kind != NLMSG_ERROR || self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        // The request stands between the errno and the attributes: its header alone, or whole.
        let request = HEADER_BYTES + 4;
        let repeated =
            if self.flags & NLM_F_CAPPED != 0 { HEADER_BYTES } else { u32_at(&self.bytes, request)? as usize };
        let mut attributes = self.bytes.get(request + repeated.next_multiple_of(4)..)?;
        while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
            let value = attributes.get(4..usize::from(length))?;
            if kind == NLMSGERR_ATTR_MSG {
                return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
            }
            attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
        }
        None
    }

    /// One object of a dump. A stranger's link or route of a kind that the decoder does not know must not stop us.
    fn parse_or_skip<M: NetlinkDeserializable>(&self) -> Option<M> {
        self.parse().unwrap_or_else(|refusal| {
            tracing::warn!(kind = self.kind, error = %refusal, "skipped an object in a netlink dump");
            None
        })
    }

    fn parse<M: NetlinkDeserializable>(&self) -> Result<Option<M>, Refusal> {
        let message = NetlinkMessage::<M>::deserialize(&self.bytes)
            .map_err(|error| Refusal::garbled(&format!("read the kernel's answer: {error}")))?;
        Ok(match message.payload {
            NetlinkPayload::InnerMessage(inner) => Some(inner),
            _ => None,
        })
    }
}

fn short() -> Refusal {
    Refusal::garbled("the kernel's answer is too short")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An acknowledgement as the kernel builds it: header, errno, the request's header, a message attribute.
    fn acknowledgement(errno: i32, words: &str) -> Vec<u8> {
        let value = [words.as_bytes(), b"\0"].concat();
        let mut body = Vec::new();
        body.extend_from_slice(&(-errno).to_ne_bytes());
        body.extend_from_slice(&[0; HEADER_BYTES]);
        body.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        body.extend_from_slice(&NLMSGERR_ATTR_MSG.to_ne_bytes());
        body.extend_from_slice(&value);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut bytes = ((body.len() + HEADER_BYTES) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        bytes.extend_from_slice(&7u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&body);
        bytes
    }

    #[test]
    fn the_kernels_words_are_found() {
        let two = [acknowledgement(22, "invalid netns"), acknowledgement(0, "")].concat();
        let answers = Answer::split(&two).unwrap();
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0].sequence, 7);
        assert_eq!(answers[0].outcome(), Err(Refusal::new(22, Some("invalid netns".to_owned()))));
        assert_eq!(answers[1].outcome(), Ok(()));
    }

    #[test]
    fn cut_answers_are_refused_not_misread() {
        let whole = acknowledgement(22, "invalid netns");
        for length in 1..whole.len() {
            let answers = Answer::split(&whole[..length]);
            assert!(answers.is_err(), "{length}");
        }
    }
}
