// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small HTTP server whose answers a test scripts, byte by byte if it likes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A request as a test sees it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: String,
    /// In what form objects are wanted.
    pub(crate) accept: String,
}

impl Request {
    pub(crate) fn is(&self, resource: &str) -> bool {
        let path = self.target.split('?').next().unwrap();
        path.ends_with(&format!("/{resource}"))
    }

    pub(crate) fn has(&self, parameter: &str) -> bool {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|item| item == parameter)
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.has("watch=true")
    }

    pub(crate) fn wants_initial_events(&self) -> bool {
        self.has("sendInitialEvents=true")
    }
}

/// A piece of an answer that comes bit by bit.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// These bytes.
    Bytes(String),
    /// Nothing for so long.
    Wait(Duration),
    /// The proper end.
    End,
    /// The connection is gone.
    Abort,
}

/// An answer.
pub(crate) enum Reply {
    /// At once.
    Whole(u16, &'static str, String),
    /// As the other end of the channel says; it stays open when that end is dropped.
    Steps(UnboundedReceiver<Step>),
    /// Never.
    Never,
}

impl Reply {
    pub(crate) fn status(code: u16, message: &str) -> Self {
        Self::Whole(code, "", status(code, message))
    }

    pub(crate) fn json(text: impl Into<String>) -> Self {
        Self::Whole(200, "", text.into())
    }

    /// A stream that does these things and then stays open.
    pub(crate) fn steps(steps: impl IntoIterator<Item = Step>) -> Self {
        let (sender, receiver) = unbounded_channel();
        for step in steps {
            sender.send(step).unwrap();
        }
        Self::Steps(receiver)
    }

    /// A stream of these lines that then stays open.
    pub(crate) fn lines<T: AsRef<str>>(lines: impl IntoIterator<Item = T>) -> Self {
        Self::steps(lines.into_iter().map(line))
    }

    /// A stream that the test goes on to write.
    pub(crate) fn live() -> (UnboundedSender<Step>, Self) {
        let (sender, receiver) = unbounded_channel();
        (sender, Self::Steps(receiver))
    }
}

pub(crate) fn line(text: impl AsRef<str>) -> Step {
    Step::Bytes(format!("{}\n", text.as_ref()))
}

pub(crate) fn status(code: u16, message: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","code":{code}}}"#
    )
}

type Handler = Box<dyn FnMut(&Request) -> Reply + Send>;

/// The server; it ends with the runtime of its test.
pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) async fn start(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, handler)
    }

    pub(crate) fn on(
        listener: TcpListener,
        handler: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Mutex<Handler>> = Arc::new(Mutex::new(Box::new(handler)));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&handler), Arc::clone(&seen)));
            }
        });
        Self { url, requests }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests so far are of this sort.
    pub(crate) fn count(&self, sort: impl Fn(&Request) -> bool) -> usize {
        self.requests()
            .iter()
            .filter(|request| sort(request))
            .count()
    }
}

/// Serves one connection; an error is the end of it.
async fn serve(
    stream: TcpStream,
    handler: Arc<Mutex<Handler>>,
    seen: Arc<Mutex<Vec<Request>>>,
) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let request = read(&mut stream).await?;
        seen.lock().unwrap().push(request.clone());
        let reply = (handler.lock().unwrap())(&request);
        match reply {
            Reply::Whole(code, headers, body) => {
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {code} X\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
                );
                stream.write_all((head + &body).as_bytes()).await.ok()?;
            }
            Reply::Never => std::future::pending().await,
            Reply::Steps(mut steps) => {
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.ok()?;
                loop {
                    match steps.recv().await {
                        Some(Step::Bytes(text)) => {
                            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
                            stream.write_all(chunk.as_bytes()).await.ok()?;
                        }
                        Some(Step::Wait(time)) => tokio::time::sleep(time).await,
                        Some(Step::End) => {
                            stream.write_all(b"0\r\n\r\n").await.ok()?;
                            break;
                        }
                        Some(Step::Abort) => return None,
                        None => std::future::pending().await,
                    }
                }
            }
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let (mut length, mut accept) = (0, String::new());
    let mut first = String::new();
    stream.read_line(&mut first).await.ok()?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("accept:") {
            value.trim().clone_into(&mut accept);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = first.split_whitespace();
    Some(Request {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        body: String::from_utf8(body).ok()?,
        accept,
    })
}
