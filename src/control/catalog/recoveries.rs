//! Recoveries at this site: the plan by which a domain's disks follow it here, or came here; and protections that ended for
//! good, whose disks a start does not serve again.

use rusqlite::{Connection, OptionalExtension};

use super::{damaged, failed, name};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::FailoverPlan;
use crate::ids::{Generation, Name, SegmentNo, SegmentRef};

/// A domain whose disks were brought here, or are brought here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recovery {
    /// By which plan.
    pub(crate) plan: FailoverPlan,
    /// They follow the domain, from every start on.
    pub(crate) follows: bool,
}

impl Recovery {
    /// That of a domain.
    pub(crate) fn find(db: &Connection, domain: &Name) -> Result<Option<Recovery>> {
        let sql = "SELECT plan, follows FROM recovery WHERE domain = ?1";
        let row = db.query_row(sql, [domain.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
        let row = row.optional().map_err(|e| failed("read a recovery", e))?;
        row.map(|(plan, follows)| Ok(Recovery { plan: read(domain, &plan)?, follows })).transpose()
    }

    /// Domains whose disks follow them here, by name.
    pub(crate) fn following(db: &Connection) -> Result<Vec<Name>> {
        let failed = |e| failed("read the recoveries", e);
        let mut statement =
            db.prepare_cached("SELECT domain FROM recovery WHERE follows ORDER BY domain").map_err(failed)?;
        let rows: Vec<String> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
        rows.iter().map(|text| name(text)).collect()
    }

    /// Writes it, in the place of one before.
    pub(crate) fn put(&self, db: &Connection, domain: &Name) -> Result<()> {
        let plan = serde_json::to_string(&self.plan);
        let plan = plan.map_err(|e| Error::with_source(ErrorKind::Internal, "put a plan into JSON", e))?;
        let sql = "INSERT INTO recovery (domain, plan, follows) VALUES (?1, ?2, ?3)
                   ON CONFLICT (domain) DO UPDATE SET plan = excluded.plan, follows = excluded.follows";
        db.execute(sql, (domain.as_str(), plan, self.follows)).map_err(|e| failed("write a recovery", e))?;
        Ok(())
    }

    /// Its disks do not follow any more.
    pub(crate) fn stop_following(db: &Connection, domain: &Name) -> Result<()> {
        let sql = "UPDATE recovery SET follows = 0 WHERE domain = ?1";
        db.execute(sql, [domain.as_str()]).map_err(|e| failed("write a recovery", e))?;
        Ok(())
    }
}

fn read(domain: &Name, plan: &str) -> Result<FailoverPlan> {
    serde_json::from_str(plan).map_err(|e| damaged(&format!("the plan of domain {domain}: {e}")))
}

/// The protection of a domain ended for good, with everything shipped up to `at`: a start does not serve its disks again.
pub(crate) fn park(db: &Connection, domain: &Name, at: SegmentRef) -> Result<()> {
    let sql = "INSERT INTO parked (domain, generation, segment) VALUES (?1, ?2, ?3)
               ON CONFLICT (domain) DO UPDATE SET generation = excluded.generation, segment = excluded.segment";
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let row = (domain.as_str(), number(at.generation.get()), number(at.segment.get()));
    db.execute(sql, row).map_err(|e| failed("write that a protection ended", e))?;
    Ok(())
}

/// A start serves them again.
pub(crate) fn unpark(db: &Connection, domain: &Name) -> Result<()> {
    let sql = "DELETE FROM parked WHERE domain = ?1";
    db.execute(sql, [domain.as_str()]).map_err(|e| failed("write that a protection goes on", e))?;
    Ok(())
}

/// Where the protection of a domain ended for good, if it did.
pub(crate) fn parked(db: &Connection, domain: &Name) -> Result<Option<SegmentRef>> {
    let sql = "SELECT generation, segment FROM parked WHERE domain = ?1";
    let row = db.query_row(sql, [domain.as_str()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
    let row = row.optional().map_err(|e| failed("read whether a protection ended", e))?;
    let number = |n: i64| u64::try_from(n).map_err(|_| damaged("where a protection ended"));
    row.map(|(generation, segment)| {
        Ok(SegmentRef::new(Generation::new(number(generation)?), SegmentNo::new(number(segment)?)))
    })
    .transpose()
}
