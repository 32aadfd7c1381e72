//! Cutting input into entries.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

const BUFFER_BYTES: usize = 64 << 10;

/// Cuts bytes into entries that, put together again, are the very same bytes.
pub(crate) struct Entries<R> {
    input: BufReader<R>,
    by_line: bool,
    bytes_max: u64,
}

impl<R: AsyncRead + Unpin> Entries<R> {
    /// Cuts behind each newline, and where a line would get longer than `bytes_max`. The last
    /// line may lack its newline.
    pub(crate) fn lines(input: R, bytes_max: usize) -> Self {
        Self { by_line: true, ..Self::chunks(input, bytes_max) }
    }

    /// Cuts every `bytes`; the last entry may have fewer.
    pub(crate) fn chunks(input: R, bytes: usize) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        Self { input, by_line: false, bytes_max: bytes as u64 }
    }

    /// Returns the next entry; none at the end of the input.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut entry = Vec::new();
        let mut rest = (&mut self.input).take(self.bytes_max);
        if self.by_line {
            rest.read_until(b'\n', &mut entry).await?;
        } else {
            rest.read_to_end(&mut entry).await?;
        }
        Ok((!entry.is_empty()).then(|| entry.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut entries: Entries<&[u8]>) -> Vec<Bytes> {
        let mut all = Vec::new();
        while let Some(entry) = entries.next().await.unwrap() {
            all.push(entry);
        }
        all
    }

    #[tokio::test]
    async fn a_line_keeps_its_newline_and_the_last_may_lack_it() {
        assert_eq!(
            all(Entries::lines(b"one\n\ntwo\r\nthree", 9)).await,
            ["one\n", "\n", "two\r\n", "three"]
        );
        assert_eq!(all(Entries::lines(b"one\n", 9)).await, ["one\n"]);
        assert!(all(Entries::lines(b"", 9)).await.is_empty());
    }

    #[tokio::test]
    async fn a_long_line_is_cut_without_being_read_whole() {
        assert_eq!(
            all(Entries::lines(b"123456789\n12\n", 4)).await,
            ["1234", "5678", "9\n", "12\n"]
        );
        let mut endless = Entries::lines(tokio::io::repeat(b'x'), 1000);
        assert_eq!(endless.next().await.unwrap().unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn chunks_do_not_care_for_lines() {
        assert_eq!(all(Entries::chunks(b"a\nb\nc", 2)).await, ["a\n", "b\n", "c"]);
        assert_eq!(all(Entries::chunks(b"abcd", 2)).await, ["ab", "cd"]);
    }
}
