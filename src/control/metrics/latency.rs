//! A histogram that was counted elsewhere, as the endpoint writes it.

use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::store::{LATENCY_BOUNDS, Latency};

/// What is shown; nothing before it is set.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<Latency>);

impl Shown {
    pub(super) fn set(&self, latency: Latency) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = latency;
    }
}

impl TypedMetric for Shown {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Shown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let latency = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bounds = LATENCY_BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(latency.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), latency.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
