//! `freshet domain points`: what a domain can be recovered to, told by an appliance.

use super::appliance_args::{ApplianceArgs, age_of, answered, report, table, when};
use super::report::Report;
use crate::control::proto::ListPointsRequest;
use crate::error::Result;

/// Most points of one call.
const PAGE: usize = 1000;

/// Lists the newest `most` points.
pub(super) async fn list(appliance: &ApplianceArgs, domain: String, most: usize) -> Result<Report> {
    let mut client = appliance.connect().await?.domains();
    let mut all = crate::control::proto::ListPointsResponse::default();
    loop {
        let page_size = (most - all.points.len()).min(PAGE) as u32;
        let request = ListPointsRequest { domain: domain.clone(), page_size, page_token: all.next_page_token.clone() };
        let page = answered(client.list_points(request).await)?;
        all.points.extend(page.points);
        (all.next_page_token, all.warnings) = (page.next_page_token, page.warnings);
        if all.next_page_token.is_empty() || all.points.len() >= most {
            break;
        }
    }
    let more = !all.next_page_token.is_empty();
    let mut table = table(["point", "generation", "time", "age", "VMs", ""]);
    for of in &all.points {
        let point = of.point.unwrap_or_default();
        let mark = match (of.fuzzy, of.quiesced) {
            (true, _) => "fuzzy",
            (false, true) => "quiesced",
            (false, false) => "",
        };
        let (number, generation) = (point.number.to_string(), of.generation.to_string());
        let (time, age) = (when(point.time.as_ref()), age_of(Some(point.age_ms)));
        table.add_row([&number, &generation, &time, &age, &of.vms.join(", "), mark]);
    }
    let mut text = if all.points.is_empty() { "no points yet".to_owned() } else { table.trim_fmt() };
    if more {
        text += "\nand older ones (--most)";
    }
    let lost =
        all.warnings.first().map(|first| format!("points may be missing, for {} reasons: {first}", all.warnings.len()));
    Ok(report(&all, text)?.incomplete(lost))
}
