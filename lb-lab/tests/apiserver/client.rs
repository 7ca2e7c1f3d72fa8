// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plain HTTP client that sees what a server really sends: chunks, ends, resets.

use std::io::{self, BufRead, BufReader, Lines, Read, Write as _};
use std::net::TcpStream;

use lb_lab::ApiServer;
use serde_json::Value;

use crate::SOON;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const STREAM: &str =
    "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

/// A connection.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

/// An answer that has a head at least.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Client {
    pub(crate) fn new(server: &ApiServer) -> Self {
        Self::connect(server).unwrap()
    }

    pub(crate) fn connect(server: &ApiServer) -> io::Result<Self> {
        let stream = TcpStream::connect(server.address())?;
        stream.set_read_timeout(Some(SOON))?;
        let reader = BufReader::new(stream);
        Ok(Self { reader })
    }

    fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: lab\r\nUser-Agent: test/1\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.reader.get_mut().write_all(text.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((code, head))
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let (code, head) = self.send(method, path, body)?;
        let mut text = Vec::new();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        if let Some(length) = length {
            let length = length.parse().unwrap();
            (&mut self.reader).take(length).read_to_end(&mut text)?;
        } else {
            Chunks::new(&mut self.reader).read_to_end(&mut text)?;
        }
        let body = serde_json::from_slice(&text)
            .unwrap_or_else(|_| Value::String(String::from_utf8(text).unwrap()));
        Ok(Answer { code, head, body })
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "").unwrap()
    }

    /// Starts a watch; panics if it is refused.
    pub(crate) fn watch(self, path: &str) -> Watch {
        let (code, watch) = self.try_watch(path).unwrap();
        assert_eq!(code, 200);
        watch
    }

    pub(crate) fn try_watch(mut self, path: &str) -> io::Result<(u16, Watch)> {
        let (code, _) = self.send("GET", path, "")?;
        let lines = BufReader::new(Chunks::new(self.reader)).lines();
        Ok((code, Watch { lines }))
    }
}

/// A body in chunks; an end without the last chunk is an error.
struct Chunks<R> {
    reader: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    const fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            ended: false,
        }
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let mut line = String::new();
        if self.left == 0 {
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.left = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
            self.ended = self.left == 0;
        }
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= count as u64;
        if self.left == 0 && self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}

/// The lines of a watch.
pub(crate) struct Watch {
    lines: Lines<BufReader<Chunks<BufReader<TcpStream>>>>,
}

impl Watch {
    /// The next line; none at a clean end.
    pub(crate) fn line(&mut self) -> io::Result<Option<String>> {
        self.lines.next().transpose()
    }

    /// The next event, and its object.
    pub(crate) fn event(&mut self) -> (String, Value) {
        let line = self.line().unwrap().unwrap();
        let mut event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        let kind = event["type"].as_str().unwrap().to_owned();
        (kind, event["object"].take())
    }

    /// The next event as `TYPE name`.
    pub(crate) fn told(&mut self) -> String {
        let (kind, object) = self.event();
        let name = object["metadata"]["name"].as_str().unwrap_or("");
        format!("{kind} {name}").trim_end().to_owned()
    }

    /// Asserts that the next events are these.
    pub(crate) fn tells(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.told(), *expected);
        }
    }
}
