use serde::Serialize;
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Micro {
    pub(crate) name: String,
    pub(crate) entries: u32,
    pub(crate) min_ns: f64,
    pub(crate) median_ns: f64,
}
