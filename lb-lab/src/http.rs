// SPDX-License-Identifier: MIT OR Apache-2.0
//! The little HTTP/1.1 that the lab's servers and clients speak, and the bulk pattern.
//!
//! **Invariant:** messages have a Content-Length, never chunks; heads have a limit; the bulk
//! bytes follow from their offset, so each side checks every byte. Read next: `server`, `client`.

use std::io::{self, BufRead, Read as _};

/// The longest head accepted, in bytes.
const HEAD_MAX: u64 = 16 << 10;

/// What both kinds of message have in common.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The first line's words: method, path, version, or version, status, text.
    pub(crate) words: [String; 3],
    /// Length of the body in bytes; 0 if not said.
    pub(crate) length: u64,
    /// Whether the sender closes after this message.
    pub(crate) close: bool,
    /// Whether the client waits for `100 Continue` before its body (curl does for large ones).
    pub(crate) expects_continue: bool,
    /// What the client calls itself; empty if not said.
    pub(crate) user_agent: String,
}

/// Reads one head; `None` at a clean end of the connection.
pub(crate) fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut limited = reader.take(HEAD_MAX);
    let mut line = String::new();
    if limited.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut head = Head::default();
    for (slot, word) in head.words.iter_mut().zip(line.trim_end().splitn(3, ' ')) {
        word.clone_into(slot);
    }
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the head does not end",
            ));
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let bad = |_| io::Error::new(io::ErrorKind::InvalidData, "content-length is no number");
            head.length = value.parse().map_err(bad)?;
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("expect") {
            head.expects_continue = value.eq_ignore_ascii_case("100-continue");
        } else if name.eq_ignore_ascii_case("user-agent") {
            value.clone_into(&mut head.user_agent);
        }
    }
    Ok(Some(head))
}

/// The value of `name=NUMBER` in a path's query.
pub(crate) fn query(path: &str, name: &str) -> Option<u64> {
    let (_, query) = path.split_once('?')?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name)?.1.parse().ok()
}

/// Fills `buffer` with the bulk bytes that start at `offset`, a multiple of 8.
pub(crate) fn fill(buffer: &mut [u8], offset: u64) {
    for (word, number) in buffer.chunks_mut(8).zip(offset / 8..) {
        // An odd multiplier (the golden ratio's bits) spreads the counter over all bytes.
        let bytes = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// How many bulk bytes a piece holds.
pub(crate) const PIECE: usize = 64 << 10;

/// Writes `length` bulk bytes.
pub(crate) fn write_bulk(writer: &mut impl io::Write, length: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < length {
        let part = (length - offset).min(PIECE as u64);
        let buffer = &mut piece[..usize::try_from(part).unwrap_or(PIECE)];
        fill(buffer, offset);
        writer.write_all(buffer)?;
        offset += part;
    }
    Ok(())
}

/// Reads `length` bulk bytes and returns the offset of the first piece that differs, if any.
pub(crate) fn check_bulk(reader: &mut impl io::Read, length: u64) -> io::Result<Option<u64>> {
    let (mut expected, mut got) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut offset, mut wrong) = (0, None);
    while offset < length {
        let part = (length - offset).min(PIECE as u64);
        let size = usize::try_from(part).unwrap_or(PIECE);
        fill(&mut expected[..size], offset);
        reader.read_exact(&mut got[..size])?;
        if wrong.is_none() && expected[..size] != got[..size] {
            wrong = Some(offset);
        }
        offset += part;
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_head_gives_path_length_and_connection() {
        let text =
            b"PUT /bulk?bytes=5 HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let mut reader = io::BufReader::new(&text[..]);
        let head = read_head(&mut reader).unwrap().unwrap();
        assert_eq!(
            head.words,
            ["PUT", "/bulk?bytes=5", "HTTP/1.1"].map(str::to_owned)
        );
        assert_eq!((head.length, head.close), (5, true));
        assert_eq!(query(&head.words[1], "bytes"), Some(5));
    }

    #[test]
    fn a_head_that_never_ends_is_refused() {
        let text = [b"GET / HTTP/1.1\r\n".to_vec(), b"A: b\r\n".repeat(4 << 10)].concat();
        assert!(read_head(&mut io::BufReader::new(&text[..])).is_err());
    }

    #[test]
    fn a_changed_bulk_byte_is_found() {
        let mut bytes = Vec::new();
        write_bulk(&mut bytes, 200_003).unwrap();
        assert_eq!(check_bulk(&mut &bytes[..], 200_003).unwrap(), None);
        bytes[150_000] ^= 1;
        assert_eq!(check_bulk(&mut &bytes[..], 200_003).unwrap(), Some(131_072));
    }
}
