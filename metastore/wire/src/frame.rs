//! Frames: the unit in which everything is said on a stream.

use std::{collections::VecDeque, mem, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::{Instant, timeout_at};

use crate::Error;

/// The most that a frame's kind and body may have together.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

/// How long the rest of a frame may take once its beginning has arrived. It bounds what a peer
/// that stalls can make us hold.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// The largest body that is copied to make one piece of it and what is around it.
const COPY_BYTES_MAX: usize = 16 << 10;

/// The least that goes out as a piece of its own if it is encoded already.
const PIECE_BYTES_MIN: usize = 4 << 10;

/// Pieces of a stream that are taken from QUIC at a time.
const CHUNKS_MAX: usize = 32;

/// The length that precedes each frame.
const LENGTH_BYTES: usize = 4;

/// The bytes of a frame before its body: length and kind.
pub const FRAME_HEADER_BYTES: usize = LENGTH_BYTES + 1;

/// The code of a stream that is given up.
const ABANDONED: VarInt = VarInt::from_u32(0);

/// Carries one message: a kind that says how to read it, and its bytes.
///
/// The body of a frame that was received shares memory with what arrived around it; copy what
/// is to be kept for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// How the body is to be read; each service numbers its own kinds.
    pub kind: u8,
    /// The message.
    pub body: Bytes,
}

impl Frame {
    /// Makes a frame of a protobuf message.
    pub fn message<M: prost::Message>(kind: u8, message: &M) -> Self {
        Self { kind, body: message.encode_to_vec().into() }
    }

    /// Reads the body as a protobuf message. Fields that are not known here are skipped.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, Error> {
        M::decode(self.body.clone())
            .map_err(|error| Error::malformed(format!("frame of kind {}: {error}", self.kind)))
    }

    /// Lays the frame out as it goes over the wire.
    ///
    /// # Panics
    /// If it is larger than [`FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(FRAME_HEADER_BYTES + self.body.len());
        bytes.put_slice(&frame_header(self.kind, self.body.len()));
        bytes.put_slice(&self.body);
        bytes.freeze()
    }
}

/// Gathers frames that go out together, in few large pieces: for each packet QUIC looks through
/// all pieces that are under way, so many small ones are dear. Large bodies are not copied.
#[derive(Debug, Default)]
pub struct Frames {
    pieces: Vec<Bytes>,
    last: BytesMut,
}

impl Frames {
    /// Gathers frames of about as many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { pieces: Vec::new(), last: BytesMut::with_capacity(bytes) }
    }

    /// Adds a frame.
    ///
    /// # Panics
    /// If it is larger than [`FRAME_BYTES_MAX`].
    pub fn push(&mut self, kind: u8, body: &Bytes) {
        self.last.put_slice(&frame_header(kind, body.len()));
        if body.len() <= COPY_BYTES_MAX {
            self.last.put_slice(body);
        } else {
            self.pieces.push(self.last.split().freeze());
            self.pieces.push(body.clone());
        }
    }

    /// Adds a frame whose body stands behind [`FRAME_HEADER_BYTES`] that are still to be filled.
    ///
    /// It is not copied if it follows in memory upon the frame that was added before it, if that
    /// was split off in front of it, or if it is large.
    ///
    /// # Panics
    /// If there is no room for the header, or the frame is larger than [`FRAME_BYTES_MAX`].
    pub fn push_in_place(&mut self, kind: u8, mut frame: BytesMut) {
        let header = frame_header(kind, frame.len() - FRAME_HEADER_BYTES);
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        if frame.len() > COPY_BYTES_MAX {
            self.cut();
        }
        self.last.unsplit(frame);
    }

    /// Adds bytes that make up whole frames.
    pub fn push_encoded(&mut self, frames: &Bytes) {
        if frames.len() < PIECE_BYTES_MIN {
            self.last.put_slice(frames);
        } else {
            self.cut();
            self.pieces.push(frames.clone());
        }
    }

    /// Takes the pieces of all frames so far, for [`FrameSender::send_encoded`].
    pub fn take(&mut self) -> Vec<Bytes> {
        self.cut();
        mem::take(&mut self.pieces)
    }

    fn cut(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push(self.last.split().freeze());
        }
    }
}

/// Gives what precedes a body of `body_bytes` on the wire: length and kind.
fn frame_header(kind: u8, body_bytes: usize) -> [u8; FRAME_HEADER_BYTES] {
    assert!(body_bytes < FRAME_BYTES_MAX, "a frame of {body_bytes} bytes is over the limit");
    let length = u32::try_from(body_bytes + 1).expect("the limit fits");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind]
}

/// Two directions of frames, in order in each; ends with the connection at the latest.
#[derive(Debug)]
pub struct Stream {
    /// What we say.
    pub sender: FrameSender,
    /// What the peer says.
    pub receiver: FrameReceiver,
}

impl Stream {
    pub(crate) fn new((sender, receiver): (SendStream, RecvStream)) -> Self {
        Self {
            sender: FrameSender { stream: sender, torn: false, finished: false },
            receiver: FrameReceiver {
                stream: receiver,
                decoder: Decoder::default(),
                waiting_since: None,
            },
        }
    }
}

/// Sends frames. Dropped without [`finish`](Self::finish) it resets the stream: what was not
/// delivered yet may be lost, and the peer's receiver gets an error.
#[derive(Debug)]
pub struct FrameSender {
    stream: SendStream,
    /// A frame was begun and not completed, so nothing sensible can follow.
    torn: bool,
    finished: bool,
}

impl FrameSender {
    /// Hands a frame to QUIC. Waits while the peer does not read or the network is full, for as
    /// long as the connection lives: set a deadline around it where that is too long.
    ///
    /// Dropping the future may leave half a frame behind; the stream is then good for nothing
    /// more, and later calls say so.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), Error> {
        let bytes = frame.body.len() + 1;
        if bytes > FRAME_BYTES_MAX {
            return Err(Error::FrameTooLarge { bytes });
        }
        let mut frames = Frames::default();
        frames.push(frame.kind, &frame.body);
        self.send_encoded(&mut frames.take()).await
    }

    /// Hands bytes that make up whole frames to QUIC, without a copy; leaves the slices empty.
    /// Otherwise as [`send`](Self::send).
    ///
    /// A frame may go over several slices, and many frames into one; [`Frames`] makes good ones.
    pub async fn send_encoded(&mut self, frames: &mut [Bytes]) -> Result<(), Error> {
        if mem::replace(&mut self.torn, true) {
            return Err(Error::lost("a frame was left half sent on this stream"));
        }
        self.stream.write_all_chunks(frames).await.map_err(|error| match error {
            WriteError::Stopped(_) => Error::lost("the peer stopped reading this stream"),
            WriteError::ConnectionLost(error) => Error::connection_lost(error),
            other => Error::lost(other.to_string()),
        })?;
        self.torn = false;
        Ok(())
    }

    /// Says that no more frames follow. What was sent is still delivered, also after the sender
    /// is dropped.
    pub fn finish(&mut self) {
        self.end();
        self.finished = !self.torn;
    }

    /// Tells the peer that no more frames follow, but still resets the stream when dropped.
    pub(crate) fn end(&mut self) {
        if !self.torn {
            // Fails only on a stream that has ended already.
            let _ = self.stream.finish();
        }
    }

    /// Sends this stream's data before or after that of the connection's other streams: higher
    /// goes first, 0 is usual.
    pub fn set_priority(&self, priority: i32) {
        // Fails only on a stream that has ended already.
        let _ = self.stream.set_priority(priority);
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only on a stream that has ended already.
            let _ = self.stream.reset(ABANDONED);
        }
    }
}

/// Receives frames. Dropped early it tells the peer to stop sending.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: RecvStream,
    decoder: Decoder,
    /// When we first waited for the rest of the frame that is being received.
    waiting_since: Option<Instant>,
}

impl FrameReceiver {
    /// Waits for the next frame; `None` when the peer has finished. May be dropped at any time
    /// without losing anything.
    ///
    /// Waits without end for a frame to begin, and 10 s for the rest of one that has begun.
    pub async fn next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.next_buffered()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS_MAX] = Default::default();
            let read = self.stream.read_chunks(&mut chunks);
            let read = if self.decoder.is_between_frames() {
                read.await
            } else {
                let since = *self.waiting_since.get_or_insert_with(Instant::now);
                timeout_at(since + FRAME_DEADLINE, read).await.map_err(|_| Error::TimedOut {
                    what: format!("the rest of a frame, {} s", FRAME_DEADLINE.as_secs()),
                })?
            };
            let count = read.map_err(|error| match error {
                ReadError::Reset(_) => Error::lost("the peer gave up this stream"),
                ReadError::ConnectionLost(error) => Error::connection_lost(error),
                other => Error::lost(other.to_string()),
            })?;
            match count {
                Some(count) => self.decoder.push(chunks.into_iter().take(count)),
                None if self.decoder.is_between_frames() => return Ok(None),
                None => return Err(Error::malformed("the stream ended within a frame")),
            }
        }
    }

    /// Gives the next frame if all of it has been taken from QUIC already. Never waits and
    /// never looks further, so `None` does not say that nothing has arrived.
    pub fn next_buffered(&mut self) -> Result<Option<Frame>, Error> {
        let frame = self.decoder.next()?;
        if frame.is_some() {
            self.waiting_since = None;
        }
        Ok(frame)
    }
}

/// Cuts a sequence of bytes into frames.
///
/// A frame that lies in one chunk is not copied. One that does not is gathered in a buffer which
/// grows with what has arrived, never with what a length promises.
#[derive(Debug, Default)]
struct Decoder {
    arrived: VecDeque<Bytes>,
    /// The beginning of a frame, length and kind included.
    partial: BytesMut,
}

impl Decoder {
    fn push(&mut self, chunks: impl Iterator<Item = Bytes>) {
        self.arrived.extend(chunks.filter(|chunk| !chunk.is_empty()));
    }

    /// Gives the next whole frame. After an error there is nothing but that error.
    fn next(&mut self) -> Result<Option<Frame>, Error> {
        if self.partial.is_empty()
            && let Some(chunk) = self.arrived.front_mut()
            && let Some(length) = chunk.first_chunk()
        {
            let end = LENGTH_BYTES + frame_bytes(*length)?;
            if chunk.len() >= end {
                let frame = chunk.split_to(end);
                if chunk.is_empty() {
                    self.arrived.pop_front();
                }
                return Ok(Some(cut(frame)));
            }
            self.gather(end);
        }
        self.gather(LENGTH_BYTES);
        let Some(length) = self.partial.first_chunk() else { return Ok(None) };
        let end = LENGTH_BYTES + frame_bytes(*length)?;
        self.gather(end);
        if self.partial.len() < end {
            return Ok(None);
        }
        Ok(Some(cut(mem::take(&mut self.partial).freeze())))
    }

    fn is_between_frames(&self) -> bool {
        self.partial.is_empty()
    }

    /// Moves what has arrived into `partial` until that has `end` bytes.
    fn gather(&mut self, end: usize) {
        let arrived: usize = self.arrived.iter().map(Bytes::len).sum();
        self.partial.reserve(arrived.min(end.saturating_sub(self.partial.len())));
        while self.partial.len() < end
            && let Some(chunk) = self.arrived.front_mut()
        {
            let count = chunk.len().min(end - self.partial.len());
            self.partial.extend_from_slice(&chunk.split_to(count));
            if chunk.is_empty() {
                self.arrived.pop_front();
            }
        }
    }
}

/// Reads how many bytes of kind and body follow a length.
fn frame_bytes(length: [u8; LENGTH_BYTES]) -> Result<usize, Error> {
    match u32::from_le_bytes(length) as usize {
        0 => Err(Error::malformed("a frame without a kind")),
        bytes if bytes > FRAME_BYTES_MAX => Err(Error::FrameTooLarge { bytes }),
        bytes => Ok(bytes),
    }
}

/// Takes a whole frame apart.
fn cut(frame: Bytes) -> Frame {
    Frame { kind: frame[LENGTH_BYTES], body: frame.slice(FRAME_HEADER_BYTES..) }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn decode_all(decoder: &mut Decoder, frames: &mut Vec<Frame>) -> Result<(), Error> {
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
        Ok(())
    }

    fn chunks(bytes: &Bytes, sizes: &[usize]) -> Vec<Bytes> {
        let mut rest = bytes.clone();
        let mut sizes = sizes.iter().cycle();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let size = sizes.next().map_or(rest.len(), |size| rest.len().min(*size));
            chunks.push(rest.split_to(size));
        }
        chunks
    }

    #[test]
    fn a_frame_in_one_chunk_is_not_copied() {
        let frame = Frame { kind: 3, body: Bytes::from_static(b"body") };
        let bytes = [frame.encode(), frame.encode()].concat();
        let chunk = Bytes::from(bytes);
        let mut decoder = Decoder::default();
        decoder.push([chunk.clone()].into_iter());
        for start in [5, 14] {
            let decoded = decoder.next().unwrap().unwrap();
            assert_eq!(decoded, frame);
            assert_eq!(decoded.body.as_ptr(), chunk[start..].as_ptr());
        }
        assert!(decoder.is_between_frames());
    }

    #[test]
    fn frames_in_place_are_as_others_and_neighbours_make_one_piece() {
        let mut memory = BytesMut::with_capacity(2 * COPY_BYTES_MAX);
        let start = memory.as_ptr();
        let (mut frames, mut others) = (Frames::default(), Vec::new());
        for bytes in [10, 0, 20, COPY_BYTES_MAX, 5] {
            memory.put_bytes(0, FRAME_HEADER_BYTES);
            memory.put_bytes(7, bytes);
            frames.push_in_place(3, memory.split());
            others.extend(Frame { kind: 3, body: vec![7; bytes].into() }.encode());
        }
        let pieces = frames.take();
        assert_eq!((pieces.concat(), pieces[0].as_ptr()), (others, start));
        let lengths: Vec<_> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [30 + 15, COPY_BYTES_MAX + 5 + 10]);
    }

    #[test]
    fn a_length_is_refused_before_its_frame_arrives() {
        for (length, expected) in [
            (0, Error::malformed("a frame without a kind")),
            (FRAME_BYTES_MAX + 1, Error::FrameTooLarge { bytes: FRAME_BYTES_MAX + 1 }),
            (u32::MAX as usize, Error::FrameTooLarge { bytes: u32::MAX as usize }),
        ] {
            let length = Bytes::copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
            for sizes in [[4], [1]] {
                let mut decoder = Decoder::default();
                decoder.push(chunks(&length, &sizes).into_iter());
                assert_eq!(decoder.next(), Err(expected.clone()));
                assert_eq!(decoder.next(), Err(expected.clone()));
            }
        }
    }

    #[test]
    fn the_largest_frame_passes_and_memory_follows_what_arrived() {
        let frame = Frame { kind: 1, body: Bytes::from(vec![7; FRAME_BYTES_MAX - 1]) };
        let bytes = frame.encode();
        let mut decoder = Decoder::default();
        decoder.push([bytes.slice(..100)].into_iter());
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.partial.capacity() < 1000);
        decoder.push([bytes.slice(100..)].into_iter());
        assert_eq!(decoder.next(), Ok(Some(frame)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            bodies in vec((any::<u8>(), vec(any::<u8>(), 0..300)), 0..20),
            sizes in vec(1_usize..200, 1..10),
            batch in 1_usize..5,
        ) {
            let frames: Vec<Frame> =
                bodies.into_iter().map(|(kind, body)| Frame { kind, body: body.into() }).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for batch in chunks(&bytes.into(), &sizes).chunks(batch) {
                decoder.push(batch.iter().cloned());
                decode_all(&mut decoder, &mut decoded).unwrap();
            }
            prop_assert_eq!(decoded, frames);
            prop_assert!(decoder.is_between_frames());
        }

        #[test]
        fn any_bytes_decode_the_same_however_they_are_cut(
            bytes in vec(prop_oneof![3 => 0_u8..3, 1 => any::<u8>()], 0..400),
            sizes in vec(1_usize..50, 1..10),
        ) {
            let bytes = Bytes::from(bytes);
            let decode = |sizes: &[usize]| {
                let mut decoder = Decoder::default();
                let mut frames = Vec::new();
                let mut outcome = Ok(());
                for chunk in chunks(&bytes, sizes) {
                    decoder.push([chunk].into_iter());
                    outcome = decode_all(&mut decoder, &mut frames);
                }
                (frames, outcome)
            };
            let (frames, outcome) = decode(&[usize::MAX]);
            prop_assert_eq!(decode(&sizes), (frames.clone(), outcome));
            let again: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            prop_assert!(bytes.starts_with(&again));
        }
    }
}
