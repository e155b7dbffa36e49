//! The points of a domain, for who chooses one: newest first, a page at a time.

use std::collections::BTreeMap;

use super::fields;
use crate::control::appliance::Appliance;
use crate::control::fault::{Done, Fault};
use crate::control::proto::{ListPointsRequest, ListPointsResponse, Point, RecoveryPoint};
use crate::control::view::timestamp;
use crate::ids::{Name, Time, VmId};
use crate::store::PointInfo;

/// Entries of a page, and most of them.
const PAGE: usize = 100;
const MOST_PAGE: usize = 1000;
/// Most texts of what could not be read.
const MOST_WARNINGS: usize = 10;

pub(super) async fn list(app: &Appliance, asked: ListPointsRequest) -> Done<ListPointsResponse> {
    let domain = fields::name("domain", &asked.domain)?;
    let most = fields::page_size(asked.page_size, PAGE, MOST_PAGE)?;
    let below = match asked.page_token.as_str() {
        "" => u64::MAX,
        text => text.parse().map_err(|_| Fault::field("page_token", "is none that this service gave"))?,
    };
    app.domain(&domain).await?;
    let (points, names, now) = app.world.points(&domain).await?;
    let newest_first = points.all().iter().rev().filter(|point| point.at.segment.get() < below);
    let mut page: Vec<&PointInfo> = newest_first.take(most + 1).collect();
    let more = page.len() > most;
    page.truncate(most);
    let next = page.last().filter(|_| more).map(|last| last.at.segment.to_string());
    Ok(ListPointsResponse {
        points: page.into_iter().map(|point| told(point, &names, now)).collect(),
        next_page_token: next.unwrap_or_default(),
        warnings: points.warnings().iter().take(MOST_WARNINGS).cloned().collect(),
    })
}

fn told(point: &PointInfo, names: &BTreeMap<VmId, Name>, now: Time) -> RecoveryPoint {
    RecoveryPoint {
        point: Some(Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: now.millis_since(point.time),
        }),
        generation: point.at.generation.get(),
        quiesced: point.quiesced,
        fuzzy: point.fuzzy,
        vms: point.vms.iter().map(|vm| names.get(vm).map_or_else(|| vm.to_string(), Name::to_string)).collect(),
    }
}
