// Package testobj builds objects and stands in for the parts that serve devices.
// It is for tests only.
//
//	task := testobj.BatchTask("a").In(namespace).Publish("event", "close").Obj()
package testobj

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
)

// ProductID is the product ID of everything that is built without saying another.
const ProductID = "ABCDE12345"

// BatchTaskBuilder builds a BatchTask.
type BatchTaskBuilder struct{ task v1alpha1.BatchTask }

// BatchTask begins a task that is for all devices of [ProductID]. It does nothing
// yet: say Publish or UpdateShadow.
func BatchTask(name string) *BatchTaskBuilder {
	return &BatchTaskBuilder{v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.BatchTaskSpec{
			ProductID:                 ProductID,
			DeviceNameFilter:          ".*",
			MaxExecutionTimeInSeconds: 86400,
		},
	}}
}

// In sets the namespace.
func (b *BatchTaskBuilder) In(namespace string) *BatchTaskBuilder {
	b.task.Namespace = namespace
	return b
}

// Publish makes it a PublishMessage task.
func (b *BatchTaskBuilder) Publish(topic, payload string) *BatchTaskBuilder {
	b.task.Spec.TaskType = v1alpha1.TaskTypePublishMessage
	b.task.Spec.Tasks.PublishMessageTask = &v1alpha1.PublishMessageTask{Topic: topic, Payload: payload}
	return b
}

// UpdateShadow makes it an UpdateShadow task.
func (b *BatchTaskBuilder) UpdateShadow(desired string) *BatchTaskBuilder {
	b.task.Spec.TaskType = v1alpha1.TaskTypeUpdateShadow
	b.task.Spec.Tasks.UpdateShadowTask = &v1alpha1.UpdateShadowTask{Desired: desired}
	return b
}

// Product sets spec.productID.
func (b *BatchTaskBuilder) Product(id string) *BatchTaskBuilder {
	b.task.Spec.ProductID = id
	return b
}

// Filter sets spec.deviceNameFilter.
func (b *BatchTaskBuilder) Filter(pattern string) *BatchTaskBuilder {
	b.task.Spec.DeviceNameFilter = pattern
	return b
}

// ScheduleAt sets spec.scheduleTimeInSeconds, in Unix seconds.
func (b *BatchTaskBuilder) ScheduleAt(seconds int64) *BatchTaskBuilder {
	b.task.Spec.ScheduleTimeInSeconds = seconds
	return b
}

// MaxExecution sets spec.maxExecutionTimeInSeconds.
func (b *BatchTaskBuilder) MaxExecution(seconds int32) *BatchTaskBuilder {
	b.task.Spec.MaxExecutionTimeInSeconds = seconds
	return b
}

// TTL sets spec.ttlSecondsAfterFinished.
func (b *BatchTaskBuilder) TTL(seconds int32) *BatchTaskBuilder {
	b.task.Spec.TTLSecondsAfterFinished = &seconds
	return b
}

// Cancel sets spec.cancel.
func (b *BatchTaskBuilder) Cancel() *BatchTaskBuilder {
	b.task.Spec.Cancel = true
	return b
}

// Created sets what the API server sets on creation.
func (b *BatchTaskBuilder) Created(uid types.UID, at metav1.Time) *BatchTaskBuilder {
	b.task.UID, b.task.CreationTimestamp, b.task.Generation = uid, at, 1
	return b
}

// Label sets a label.
func (b *BatchTaskBuilder) Label(key, value string) *BatchTaskBuilder {
	if b.task.Labels == nil {
		b.task.Labels = map[string]string{}
	}
	b.task.Labels[key] = value
	return b
}

// Phase sets status.phase.
func (b *BatchTaskBuilder) Phase(phase v1alpha1.TaskPhase) *BatchTaskBuilder {
	b.task.Status.Phase = phase
	return b
}

// Change makes any other change.
func (b *BatchTaskBuilder) Change(change func(*v1alpha1.BatchTask)) *BatchTaskBuilder {
	change(&b.task)
	return b
}

// Obj returns the task. Each call returns another copy.
func (b *BatchTaskBuilder) Obj() *v1alpha1.BatchTask { return b.task.DeepCopy() }

// ProductBuilder builds a Product.
type ProductBuilder struct{ product v1alpha1.Product }

// Product begins a product with [ProductID].
func Product(name string) *ProductBuilder {
	return &ProductBuilder{v1alpha1.Product{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.ProductSpec{ProductID: ProductID},
	}}
}

// In sets the namespace.
func (b *ProductBuilder) In(namespace string) *ProductBuilder {
	b.product.Namespace = namespace
	return b
}

// ID sets spec.productID.
func (b *ProductBuilder) ID(id string) *ProductBuilder {
	b.product.Spec.ProductID = id
	return b
}

// Topics sets spec.topics.
func (b *ProductBuilder) Topics(topics ...string) *ProductBuilder {
	b.product.Spec.Topics = topics
	return b
}

// Created sets what the API server sets on creation.
func (b *ProductBuilder) Created(uid types.UID, at metav1.Time) *ProductBuilder {
	b.product.UID, b.product.CreationTimestamp, b.product.Generation = uid, at, 1
	return b
}

// Deleting sets the time of deletion.
func (b *ProductBuilder) Deleting(at metav1.Time) *ProductBuilder {
	b.product.DeletionTimestamp = &at
	return b
}

// Ready sets the Ready condition.
func (b *ProductBuilder) Ready(is metav1.ConditionStatus, reason string) *ProductBuilder {
	b.product.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionReady, Status: is, Reason: reason, Message: "as the test says",
		LastTransitionTime: metav1.Unix(1_700_000_000, 0),
	}}
	return b
}

// Obj returns the product. Each call returns another copy.
func (b *ProductBuilder) Obj() *v1alpha1.Product { return b.product.DeepCopy() }

// DeviceBuilder builds a Device.
type DeviceBuilder struct{ device v1alpha1.Device }

// Device begins a device of [ProductID] whose object and device names are name.
func Device(name string) *DeviceBuilder {
	return &DeviceBuilder{v1alpha1.Device{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.DeviceSpec{ProductID: ProductID, DeviceName: name},
	}}
}

// In sets the namespace.
func (b *DeviceBuilder) In(namespace string) *DeviceBuilder {
	b.device.Namespace = namespace
	return b
}

// Product sets spec.productID.
func (b *DeviceBuilder) Product(id string) *DeviceBuilder {
	b.device.Spec.ProductID = id
	return b
}

// Disabled sets spec.disabled.
func (b *DeviceBuilder) Disabled() *DeviceBuilder {
	b.device.Spec.Disabled = true
	return b
}

// Obj returns the device. Each call returns another copy.
func (b *DeviceBuilder) Obj() *v1alpha1.Device { return b.device.DeepCopy() }

// TaskQuotaBuilder builds a TaskQuota.
type TaskQuotaBuilder struct{ quota v1alpha1.TaskQuota }

// TaskQuota begins the quota of a namespace, with the limit of five.
func TaskQuota(namespace string) *TaskQuotaBuilder {
	return &TaskQuotaBuilder{v1alpha1.TaskQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName},
		Spec:       v1alpha1.TaskQuotaSpec{MaxActiveTasks: v1alpha1.DefaultMaxActiveTasks},
	}}
}

// Limit sets spec.maxActiveTasks.
func (b *TaskQuotaBuilder) Limit(n int32) *TaskQuotaBuilder {
	b.quota.Spec.MaxActiveTasks = n
	return b
}

// Slot adds a slot to the ledger, which counts as opened from then on.
func (b *TaskQuotaBuilder) Slot(uid types.UID, name string, bound bool) *TaskQuotaBuilder {
	b.quota.Status.Opened = true
	b.quota.Status.Slots = append(b.quota.Status.Slots, v1alpha1.TaskSlot{
		UID: uid, Name: name, ReservedAt: metav1.Unix(1_700_000_000, 0), Bound: bound,
	})
	b.quota.Status.Active++
	return b
}

// Obj returns the quota. Each call returns another copy.
func (b *TaskQuotaBuilder) Obj() *v1alpha1.TaskQuota { return b.quota.DeepCopy() }
