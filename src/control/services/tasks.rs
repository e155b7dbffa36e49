//! The service of tasks.

use std::sync::Arc;

use futures::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::{Messages, Services, caller, convert, fields};
use crate::control::fault::{Done, Fault};
use crate::control::proto::task_service_server::TaskService;
use crate::control::proto::{
    AbandonTaskRequest, AbandonTaskResponse, AnswerTaskRequest, AnswerTaskResponse, GetTaskRequest, GetTaskResponse,
    ListTasksRequest, ListTasksResponse, WatchTaskRequest, WatchTaskResponse,
};
use crate::error::{Error, ErrorKind};
use crate::failover::{Choice, Command, TaskId};

fn id(text: &str) -> Done<TaskId> {
    TaskId::parse(text).ok_or_else(|| Fault::field("id", "is no id of a task, which is a UUID"))
}

#[tonic::async_trait]
impl TaskService for Services {
    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        let id = id(&request.into_inner().id)?;
        let task = self.app.engine.task(id).map_err(Fault::from)?;
        Ok(Response::new(GetTaskResponse { task: Some(convert::task(&task)) }))
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let asked = request.into_inner();
        let most = fields::page_size(asked.page_size, 100, 1000)?;
        let before = match asked.page_token.as_str() {
            "" => None,
            text => {
                Some(TaskId::parse(text).ok_or_else(|| Fault::field("page_token", "is none that this service gave"))?)
            }
        };
        let tasks = self.app.engine.tasks();
        let wanted = tasks.iter().rev().filter(|task| {
            before.is_none_or(|before| task.id < before)
                && (asked.domain.is_empty() || task.domain.as_str() == asked.domain)
                && !(asked.running_only && task.state.is_terminal())
        });
        // One more tells whether there is another page.
        let mut page: Vec<_> = wanted.take(most + 1).collect();
        let more = page.len() > most;
        page.truncate(most);
        let next = page.last().filter(|_| more).map(|last| last.id.to_string());
        let tasks = page.into_iter().map(|task| convert::task(task)).collect();
        Ok(Response::new(ListTasksResponse { tasks, next_page_token: next.unwrap_or_default() }))
    }

    type WatchTaskStream = Messages<WatchTaskResponse>;

    async fn watch_task(&self, request: Request<WatchTaskRequest>) -> Result<Response<Self::WatchTaskStream>, Status> {
        let id = id(&request.into_inner().id)?;
        let changes = self.app.engine.watch(id).map_err(Fault::from)?;
        let closing = self.app.closing.clone();
        let changes = Box::pin(WatchStream::new(changes).take_until(async move { closing.cancelled().await }));
        // The message in which it has ended is the last, and nothing is waited for after it.
        let messages = futures::stream::unfold(Some(changes), |changes| async move {
            let mut changes = changes?;
            let task = changes.next().await?;
            let rest = (!task.state.is_terminal()).then_some(changes);
            Some((Ok(WatchTaskResponse { task: Some(convert::task(&task)) }), rest))
        });
        let ended = self.app.closing.clone();
        let over = futures::stream::once(async move {
            let why = Error::new(ErrorKind::Unreachable, "the appliance stops");
            ended.is_cancelled().then(|| Err(Fault::from(why).into_status()))
        });
        Ok(Response::new(Box::pin(messages.chain(over.filter_map(std::future::ready)))))
    }

    async fn answer_task(&self, request: Request<AnswerTaskRequest>) -> Result<Response<AnswerTaskResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let id = id(&asked.id)?;
        let task = app.engine.task(id).map_err(Fault::from)?;
        let (subject, by) = (task.domain.to_string(), caller.name.clone());
        let answered = self.app.act(&caller, "TaskService/AnswerTask", &subject, async move {
            let choice = Choice::from_word(&asked.choice);
            let current = asked.question == task.questions;
            if asked.question == 0 {
                return Err(Fault::field("question", "must be the number of the question that is answered"));
            }
            let offered = task.question().filter(|_| current).map(|question| question.choices.clone());
            if let Some(offered) = &offered
                && choice.is_none_or(|choice| !offered.contains(&choice))
            {
                let words: Vec<&str> = offered.iter().map(|choice| choice.word()).collect();
                return Err(Fault::field("choice", format!("must be one of {}", words.join(", "))));
            }
            let why = || format!("question {} is not asked: look at what the task asks now", asked.question);
            let choice = choice.ok_or_else(|| Fault::refused(why()))?;
            let engine = &app.engine;
            engine.command(id, Command::Choose { choice, question: asked.question }, &by).await?;
            Ok(convert::task(&*engine.task(id)?))
        });
        Ok(Response::new(AnswerTaskResponse { task: Some(answered.await?) }))
    }

    async fn abandon_task(
        &self,
        request: Request<AbandonTaskRequest>,
    ) -> Result<Response<AbandonTaskResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let id = id(&asked.id)?;
        // Of one of which nothing can be read, not even the domain is known.
        let domain = app.engine.task(id).ok().map(|task| task.domain.to_string());
        let (subject, by) = (domain.clone().unwrap_or_else(|| id.to_string()), caller.name.clone());
        let named = subject.clone();
        let given_up = self.app.act(&caller, "TaskService/AbandonTask", &subject, async move {
            if asked.domain != named {
                let what = if domain.is_some() { "the task's domain" } else { "the task's id, since no more is known" };
                return Err(Fault::field("domain", format!("must be {what}, {named}, which confirms it")));
            }
            let task = app.engine.abandon(id, &by).await?;
            Ok(task.map(|task| convert::task(&task)))
        });
        Ok(Response::new(AbandonTaskResponse { task: given_up.await? }))
    }
}
