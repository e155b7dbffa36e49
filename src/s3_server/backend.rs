//! The S3 operations, each a thin translation between `s3s` and the catalog, the reader and the uploads.
//!
//! Nothing here decides who wins a race (the catalog does) and nothing here misbehaves on purpose (the front does).

use super::catalog::{After, Catalog, Condition, Entry, Page, Query};
use super::incoming::Incoming;
use super::multipart;
use super::pool::Pool;
use super::reader::Reader;
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use std::sync::Arc;

/// Keys in a page of a listing at most, as in the original.
pub(super) const MOST_KEYS: usize = 1000;

/// Serves the objects of a catalog.
pub(super) struct Backend {
    catalog: Arc<Catalog>,
    pool: Pool,
    page: usize,
}

/// The four headers that make a read conditional.
struct ReadConditions {
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
}

impl Backend {
    /// `page` bounds the keys of a listing's page, so that a test sees paging with few objects.
    pub(super) fn new(catalog: Arc<Catalog>, page: usize) -> Backend {
        Backend { catalog, pool: Pool::default(), page: page.clamp(1, MOST_KEYS) }
    }

    fn has_bucket(&self, bucket: &str) -> S3Result<()> {
        self.catalog.find(bucket, "").map(drop)
    }

    fn delete_one(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.catalog.delete(bucket, key, &Condition::Any)
    }

    fn list(&self, input: &ListObjectsV2Input) -> S3Result<Page> {
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => parse_token(token)?,
            (None, Some(key)) => After::Key(key.clone()),
            (None, None) => After::Start,
        };
        let max = input.max_keys.map_or(self.page, |max| usize::try_from(max).unwrap_or(0).min(self.page));
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let delimiter = input.delimiter.as_deref().unwrap_or_default();
        self.catalog.list(&input.bucket, &Query { prefix, delimiter, after, max })
    }
}

impl ReadConditions {
    fn new(
        if_match: Option<ETagCondition>,
        if_none_match: Option<ETagCondition>,
        if_modified_since: Option<Timestamp>,
        if_unmodified_since: Option<Timestamp>,
    ) -> ReadConditions {
        ReadConditions { if_match, if_none_match, if_modified_since, if_unmodified_since }
    }

    /// The order and the precedence of RFC 9110, section 13.2.2.
    fn check(&self, entry: Entry) -> S3Result<()> {
        let failed = || Err(S3Error::new(S3ErrorCode::PreconditionFailed));
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(ETagCondition::ETag(tag)), _) if !entry.etag().strong_cmp(tag) => return failed(),
            (None, Some(since)) if entry.modified() > *since => return failed(),
            _ => {}
        }
        let unchanged = match (&self.if_none_match, &self.if_modified_since) {
            (Some(ETagCondition::Any), _) => true,
            (Some(ETagCondition::ETag(tag)), _) => entry.etag().weak_cmp(tag),
            (None, Some(since)) => entry.modified() <= *since,
            (None, None) => false,
        };
        if unchanged { Err(S3Error::new(S3ErrorCode::NotModified)) } else { Ok(()) }
    }
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        if !self.catalog.create_bucket(&req.input.bucket).map_err(S3Error::internal_error)? {
            return Err(S3Error::new(S3ErrorCode::BucketAlreadyOwnedByYou));
        }
        let location = Some(format!("/{}", req.input.bucket));
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.has_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.has_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let bucket = |name| Bucket { name: Some(name), ..Default::default() };
        let buckets = Some(self.catalog.buckets().into_iter().map(bucket).collect());
        Ok(S3Response::new(ListBucketsOutput { buckets, ..Default::default() }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let condition = write_condition(input.if_match, input.if_none_match)?;
        self.has_bucket(&input.bucket)?;
        let incoming = Incoming::receive(&self.catalog.incoming(), input.body, input.content_length).await?;
        let entry = self.catalog.commit(&input.bucket, &input.key, incoming, &condition)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(entry.etag()), ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (entry, file) = self.catalog.open_object(&input.bucket, &input.key)?;
        let (since, not_since) = (input.if_modified_since, input.if_unmodified_since);
        ReadConditions::new(input.if_match, input.if_none_match, since, not_since).check(entry)?;
        let range = match input.range {
            Some(range) => range.check(entry.len).map_err(|_| S3Error::new(S3ErrorCode::InvalidRange))?,
            None => 0..entry.len,
        };
        let content_range = input.range.map(|_| format!("bytes {}-{}/{}", range.start, range.end - 1, entry.len));
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(range.end - range.start)?),
            content_range,
            e_tag: Some(entry.etag()),
            last_modified: Some(entry.modified()),
            body: Some(StreamingBlob::new(Reader::new(file, range, self.pool.clone()))),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let (entry, _) = self.catalog.open_object(&input.bucket, &input.key)?;
        let (since, not_since) = (input.if_modified_since, input.if_unmodified_since);
        ReadConditions::new(input.if_match, input.if_none_match, since, not_since).check(entry)?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(entry.len)?),
            e_tag: Some(entry.etag()),
            last_modified: Some(entry.modified()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let condition = req.input.if_match.map_or(Condition::Any, Condition::Is);
        self.catalog.delete(&req.input.bucket, &req.input.key, &condition)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.has_bucket(&req.input.bucket)?;
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in req.input.delete.objects {
            let key = Some(object.key.clone());
            match self.delete_one(&req.input.bucket, &object.key) {
                Ok(()) => deleted.push(DeletedObject { key, ..Default::default() }),
                Err(error) => {
                    let code = Some(error.code().as_str().to_owned());
                    errors.push(s3s::dto::Error { key, code, ..Default::default() });
                }
            }
        }
        let deleted = (!req.input.delete.quiet.unwrap_or(false)).then_some(deleted);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, errors: Some(errors), ..Default::default() }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let page = self.list(&input)?;
        let count = page.objects.len() + page.prefixes.len();
        let object = |(key, entry): (String, Entry)| Object {
            key: Some(key),
            size: i64::try_from(entry.len).ok(),
            e_tag: Some(entry.etag()),
            last_modified: Some(entry.modified()),
            ..Default::default()
        };
        let common = |prefix| CommonPrefix { prefix: Some(prefix) };
        Ok(S3Response::new(ListObjectsV2Output {
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| token(&next)),
            key_count: i32::try_from(count).ok(),
            max_keys: input.max_keys.or(i32::try_from(self.page).ok()),
            contents: Some(page.objects.into_iter().map(object).collect()),
            common_prefixes: Some(page.prefixes.into_iter().map(common).collect()),
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (bucket, key) = (req.input.bucket, req.input.key);
        self.has_bucket(&bucket)?;
        let id = multipart::create(&self.catalog.uploads(), &bucket, &key).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id),
            bucket: Some(bucket),
            key: Some(key),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        multipart::check_number(input.part_number)?;
        let directory = multipart::find(&self.catalog.uploads(), &input.bucket, &input.key, &input.upload_id)?;
        let incoming = Incoming::receive(&self.catalog.incoming(), input.body, input.content_length).await?;
        let tag = multipart::add_part(&directory, input.part_number, self.catalog.next_version(), incoming)?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(tag), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let condition = write_condition(input.if_match, input.if_none_match)?;
        let directory = multipart::find(&self.catalog.uploads(), &input.bucket, &input.key, &input.upload_id)?;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let (from, to) = (directory.clone(), self.catalog.incoming());
        let assemble = tokio::task::spawn_blocking(move || multipart::assemble(&from, &parts, &to));
        let whole = assemble.await.map_err(S3Error::internal_error)??;
        let entry = self.catalog.commit(&input.bucket, &input.key, whole, &condition)?;
        multipart::remove(&directory)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(entry.etag()),
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let directory = multipart::find(&self.catalog.uploads(), &input.bucket, &input.key, &input.upload_id)?;
        multipart::remove(&directory)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

fn write_condition(if_match: Option<ETagCondition>, if_none_match: Option<ETagCondition>) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Any),
        (Some(wanted), None) => Ok(Condition::Is(wanted)),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        _ => Err(S3Error::with_message(S3ErrorCode::NotImplemented, "this combination of conditions")),
    }
}

fn length(len: u64) -> S3Result<i64> {
    i64::try_from(len).map_err(S3Error::internal_error)
}

/// `k` and a key, or `p` and a common prefix, in hexadecimal: opaque to clients and safe in XML and in a query.
fn token(after: &After) -> String {
    let plain = match after {
        After::Start => String::new(),
        After::Key(key) => format!("k{key}"),
        After::Prefix(common) => format!("p{common}"),
    };
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_token(token: &str) -> S3Result<After> {
    let invalid = || S3Error::with_message(S3ErrorCode::InvalidArgument, "unknown continuation token");
    let digit = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let plain: Option<Vec<u8>> = token.as_bytes().chunks(2).map(digit).collect();
    let plain = plain.and_then(|plain| String::from_utf8(plain).ok()).ok_or_else(invalid)?;
    match (plain.strip_prefix('k'), plain.strip_prefix('p')) {
        (Some(key), _) => Ok(After::Key(key.to_owned())),
        (_, Some(common)) => Ok(After::Prefix(common.to_owned())),
        _ => Err(invalid()),
    }
}
