//! The service of events.

use tonic::{Request, Response, Status};

use super::{Services, fields};
use crate::control::catalog::{EventPage, EventRecord};
use crate::control::fault::Fault;
use crate::control::proto::event_service_server::EventService;
use crate::control::proto::{Event, ListEventsRequest, ListEventsResponse};
use crate::control::view::timestamp;

#[tonic::async_trait]
impl EventService for Services {
    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let asked = request.into_inner();
        let most = fields::page_size(asked.page_size, 100, 1000)?;
        let before = match asked.page_token.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Fault::field("page_token", "is none that this service gave"))?),
        };
        let subject = Some(asked.subject).filter(|subject| !subject.is_empty());
        // One more tells whether there is another page.
        let page = EventPage { subject, before, most: most + 1 };
        let mut records = self.app.catalog.call(move |db| EventRecord::list(db, &page)).await.map_err(Fault::from)?;
        let more = records.len() > most;
        records.truncate(most);
        let next = records.last().filter(|_| more).map(|last| last.number.to_string());
        let events = records.into_iter().map(|record| Event {
            number: record.number,
            time: Some(timestamp(record.at)),
            actor: record.actor,
            action: record.action,
            subject: record.subject,
            outcome: record.outcome,
            detail: record.detail,
        });
        let events = events.collect();
        Ok(Response::new(ListEventsResponse { events, next_page_token: next.unwrap_or_default() }))
    }
}
