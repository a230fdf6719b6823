//! What a document is, by its content.

use serde_json::Value;

use super::{BadDocument, Said, aws, azure, gcloud, mapping, monitoring, shortened, terraform};

const GIVE: &str = "headroom understands `gcloud compute routers nats describe`, `get-nat-mapping-info`, `get-status` and Cloud \
                    Monitoring time series, `terraform show`, `aws ec2 describe-nat-gateways`, `az aks show`, `az network nat \
                    gateway show` and `az network lb outbound-rule list`, each as JSON";

/// Reads a document.
///
/// # Errors
/// Whatever keeps it from saying something about one NAT.
pub fn read(bytes: &[u8], gateway: Option<&str>) -> Result<Said, BadDocument> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(BadDocument::Empty);
    }
    let document: Value = serde_json::from_slice(bytes)
        .map_err(|error| BadDocument::NotJson { why: shortened(&error.to_string()), hint: hint(bytes) })?;
    match &document {
        Value::Array(items) => list(&document, items, gateway),
        Value::Object(_) => object(&document, gateway),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Err(other("a single JSON value")),
    }
}

/// Whether the value is an object with such a key.
fn has(value: &Value, key: &str) -> bool {
    value.get(key).is_some()
}

fn list(document: &Value, items: &[Value], gateway: Option<&str>) -> Result<Said, BadDocument> {
    let any = |key: &str| items.iter().any(|item| has(item, key));
    let azure = |kind: &str| items.iter().any(|item| azure::is(item, kind));
    match () {
        () if items.is_empty() => Err(other("an empty list")),
        () if any("interfaceNatMappings") || any("instanceName") => mapping::read(document, ""),
        () if any("natIpInfoMappings") => Err(other(IP_INFO)),
        () if any("nats") => gcloud::routers(items, gateway),
        () if any("points") => monitoring::read(document, ""),
        () if any("natIpAllocateOption") || any("sourceSubnetworkIpRangesToNat") => gcloud::nats(items, "", gateway),
        () if azure("outboundRules") => azure::outbound_rules(items, gateway),
        () if azure("natGateways") => azure::nat_gateways(items, gateway),
        () if azure("managedClusters") => azure::clusters(items, gateway),
        () if any("network") && any("selfLink") => {
            Err(BadDocument::Nothing { tool: "gcloud compute routers list", hint: String::new() })
        }
        () => Err(other(&described(items.first().unwrap_or(&Value::Null), "a list of "))),
    }
}

fn object(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let has = |key| has(document, key);
    let result = document.get("result");
    match () {
        () if has("NatGateways") => aws::nat_gateways(document, gateway),
        () if has("NatGateway") => aws::created(document, gateway),
        () if has("timeSeries") => monitoring::read(document.get("timeSeries").unwrap_or(&Value::Null), "timeSeries"),
        () if has("natIpAllocateOption") || has("sourceSubnetworkIpRangesToNat") => {
            gcloud::nats(std::slice::from_ref(document), ".", gateway)
        }
        () if has("nats") => gcloud::routers(std::slice::from_ref(document), gateway),
        () if of_ips(result) => Err(other(IP_INFO)),
        () if result.is_some_and(Value::is_array) => mapping::read(result.unwrap_or(&Value::Null), "result"),
        () if result.is_some_and(|result| {
            super::recognise::has(result, "natStatus") || super::recognise::has(result, "network")
        }) =>
        {
            gcloud::status(result.unwrap_or(&Value::Null), gateway)
        }
        () if has("interfaceNatMappings") => mapping::one(document),
        () if has("format_version") => terraform::read(document, gateway),
        () if has("terraform_version") && has("lineage") => Err(BadDocument::OtherKind {
            what: "a raw Terraform state".to_owned(),
            instead: "give what `terraform show -json` prints",
        }),
        () if azure::is(document, "outboundRules") => azure::outbound_rules(std::slice::from_ref(document), gateway),
        () if azure::is(document, "natGateways") => azure::nat_gateways(std::slice::from_ref(document), gateway),
        () if azure::is(document, "managedClusters") => azure::clusters(std::slice::from_ref(document), gateway),
        () if has("apiVersion") && has("kind") => Err(other("Kubernetes objects")),
        () if has("Reservations") => Err(other("what `aws ec2 describe-instances` prints")),
        () if has("kind") && document.get("kind").and_then(Value::as_str) == Some("compute#router") => {
            Err(BadDocument::Nothing { tool: "gcloud compute routers describe", hint: String::new() })
        }
        () => Err(other(&described(document, ""))),
    }
}

/// The ports of NAT IPs, not of machines.
const IP_INFO: &str = "what `gcloud compute routers get-nat-ip-info` prints";

fn of_ips(result: Option<&Value>) -> bool {
    let items = result.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().any(|item| has(item, "natIpInfoMappings") || (has(item, "natName") && !has(item, "instanceName")))
}

fn other(what: &str) -> BadDocument {
    BadDocument::OtherKind { what: what.to_owned(), instead: GIVE }
}

/// `a list of objects with name, zone, …`
fn described(value: &Value, before: &str) -> String {
    let Value::Object(fields) = value else { return format!("{before}values that are no objects") };
    let names: Vec<String> = fields.keys().take(5).map(|name| shortened(name)).collect();
    let more = if fields.len() > 5 { ", …" } else { "" };
    let objects = if before.is_empty() { "an object" } else { "objects" };
    if names.is_empty() {
        format!("{before}{objects} without fields")
    } else {
        format!("{before}{objects} with {}{more}", names.join(", "))
    }
}

/// What is often given instead of JSON.
fn hint(bytes: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(1 << 16)).unwrap_or_default());
    match () {
        () if text.contains("resource \"") => "; this is Terraform's source: give what `terraform show -json` prints",
        () if text.contains("natIpAllocateOption:") || text.contains("instanceName:") => {
            "; this is gcloud's YAML: ask for it with --format=json"
        }
        () if text.contains("# google_compute_router_nat") || text.contains("# module.") => {
            "; this is Terraform's text: add -json to `terraform show`"
        }
        () if text.starts_with("ERROR:") => "; the tool printed an error",
        () => "",
    }
}
