// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way of bytes to a client: plain answers, and chunks of an answer whose length nobody knows yet.
//!
//! **Invariant:** what is gathered in the buffer goes out as one chunk by one write, unless it is to be slow.
//! Read next: `serve`.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use super::serve::Shared;
use super::status::Failure;

/// How much is gathered before it is sent.
pub(super) const PIECE: usize = 256 << 10;
/// Room for a chunk's length, eight digits and an end of line.
const LENGTH: usize = 10;
/// What every answer says.
const COMMON: &str = "Cache-Control: no-cache, private\r\nContent-Type: application/json\r\n";

/// An answer in chunks.
pub(super) struct Chunks<'a> {
    shared: &'a Shared,
    pub(super) stream: &'a TcpStream,
    buffer: Vec<u8>,
    pub(super) pace: Option<usize>,
}

impl<'a> Chunks<'a> {
    /// Sends the head.
    pub(super) fn begin(
        shared: &'a Shared,
        stream: &'a TcpStream,
        pace: Option<usize>,
    ) -> io::Result<Self> {
        let head = format!("HTTP/1.1 200 OK\r\n{COMMON}Transfer-Encoding: chunked\r\n\r\n");
        send(shared, stream, head.as_bytes(), pace)?;
        Ok(Self {
            shared,
            stream,
            buffer: vec![b'0'; LENGTH],
            pace,
        })
    }

    /// Where the next chunk is gathered.
    pub(super) const fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() > PIECE
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.len() == LENGTH
    }

    /// Sends what was gathered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let length = format!("{:08x}\r\n", self.buffer.len() - LENGTH);
        self.buffer[..LENGTH].copy_from_slice(length.as_bytes());
        self.buffer.extend_from_slice(b"\r\n");
        send(self.shared, self.stream, &self.buffer, self.pace)?;
        self.buffer.truncate(LENGTH);
        Ok(())
    }

    /// Sends the rest and says that this was all.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        send(self.shared, self.stream, b"0\r\n\r\n", self.pace)
    }
}

/// Answers with a body that is there as a whole.
pub(super) fn answer(
    shared: &Shared,
    stream: &TcpStream,
    status: &str,
    body: &[u8],
    pace: Option<usize>,
) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{COMMON}Content-Length: {length}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    send(shared, stream, &bytes, pace)
}

/// Answers with a failure.
pub(super) fn refuse(shared: &Shared, stream: &TcpStream, failure: &Failure) -> io::Result<()> {
    let (code, words) = (failure.code, failure.words());
    let status = match failure.retry_after_secs {
        Some(secs) => format!("{code} {words}\r\nRetry-After: {secs}"),
        None => format!("{code} {words}"),
    };
    answer(shared, stream, &status, failure.body().as_bytes(), None)
}

fn send(
    shared: &Shared,
    mut stream: &TcpStream,
    bytes: &[u8],
    pace: Option<usize>,
) -> io::Result<()> {
    shared
        .bytes
        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    let Some(pace) = pace else {
        return stream.write_all(bytes);
    };
    for piece in bytes.chunks(pace) {
        stream.write_all(piece)?;
        shared.pause_for_a_millisecond()?;
    }
    Ok(())
}
