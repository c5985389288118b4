// Package webhook is the admission of BatchTasks: thin adapters between the API
// server and the rules in internal/validation and internal/quota.
package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/validation"
)

// Quota is the ledger of slots.
type Quota interface {
	Reserve(ctx context.Context, task quota.Holder) error
	Check(ctx context.Context, namespace string) error
}

// MatchCounter tells how many devices a task would be for now.
type MatchCounter interface {
	CountMatches(ctx context.Context, task *v1alpha1.BatchTask) (int64, error)
}

// Products finds products and whether tasks may run on them.
type Products interface {
	// Lookup returns the namespace's product with this ID, by a live read; nil if
	// there is none.
	Lookup(ctx context.Context, namespace, productID string) (*v1alpha1.Product, error)
}

// BatchTask admits BatchTasks. It looks at their creation only: what may change
// later is said by the schema.
type BatchTask struct {
	Live     client.Reader // reads past every cache
	Products Products
	Quota    Quota
	Matches  MatchCounter
	Clock    clock.PassiveClock
	Skew     time.Duration // how far in the past a schedule may lie
	// Patience is how long a new product may take to become Ready; 0 stands for 3 s.
	Patience time.Duration
	// Advice is how long a dry run may count the devices that match; 0 stands for 2 s.
	Advice time.Duration
}

var _ admission.Validator[*v1alpha1.BatchTask] = (*BatchTask)(nil)

// SetupWithManager registers the webhooks with the manager's webhook server, at the
// paths that the webhook configurations name.
func (w *BatchTask) SetupWithManager(mgr ctrl.Manager) {
	const of = "iot-batchtask-dev-v1alpha1-batchtask"
	server := mgr.GetWebhookServer()
	server.Register("/mutate-"+of, newGuard(&admission.Webhook{Handler: identify{w.Clock}}))
	server.Register("/validate-"+of, newGuard(admission.WithValidator(mgr.GetScheme(), w)))
}

// ValidateCreate checks the rules that the schema cannot say, and last of all
// reserves a slot: a task that is refused for anything this webhook knows of
// never holds one. A dry run reserves nothing.
func (w *BatchTask) ValidateCreate(ctx context.Context, task *v1alpha1.BatchTask) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("admit task: %w", err)
	}
	warnings := validation.Warnings(&task.Spec, w.Clock.Now())
	if err := w.validate(ctx, task); err != nil {
		return warnings, err
	}
	if req.DryRun != nil && *req.DryRun {
		if err = w.Quota.Check(ctx, task.Namespace); err == nil {
			warnings = append(warnings, w.preview(ctx, task)...)
		}
	} else {
		err = w.Quota.Reserve(ctx, quota.Holder{UID: task.UID, Namespace: task.Namespace, Name: task.Name})
	}
	return warnings, refuseQuota(task, err)
}

// ValidateUpdate admits everything: the schema says what may change.
func (w *BatchTask) ValidateUpdate(context.Context, *v1alpha1.BatchTask, *v1alpha1.BatchTask) (admission.Warnings, error) {
	return nil, nil
}

// ValidateDelete admits everything.
func (w *BatchTask) ValidateDelete(context.Context, *v1alpha1.BatchTask) (admission.Warnings, error) {
	return nil, nil
}

// validate refuses a task for what is wrong with its spec, then for its product, then
// for its name.
func (w *BatchTask) validate(ctx context.Context, task *v1alpha1.BatchTask) error {
	errs := validation.Spec(&task.Spec)
	errs = append(errs, validation.Schedule(&task.Spec, w.Clock.Now(), w.Skew)...)
	if len(errs) > 0 {
		return refuseFields(task, errs)
	}
	free := make(chan error, 1)
	go func() { free <- w.nameFree(ctx, task) }() // the two reads do not depend on each other
	product, err := w.readyProduct(ctx, task)
	if err != nil {
		return err
	}
	if errs := validation.Topic(&task.Spec, product); len(errs) > 0 {
		return refuseFields(task, errs)
	}
	return <-free
}

// readyProduct returns the task's product if tasks may run on it. A product that
// has just been created gets a moment to become Ready, so that a product and its
// tasks can be applied in one go.
func (w *BatchTask) readyProduct(ctx context.Context, task *v1alpha1.BatchTask) (*v1alpha1.Product, error) {
	const defaultPatience, interval = 3 * time.Second, 50 * time.Millisecond
	give := time.After(cmp.Or(w.Patience, defaultPatience))
	for {
		product, err := w.Products.Lookup(ctx, task.Namespace, task.Spec.ProductID)
		if err != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("look up product %q: %w", task.Spec.ProductID, err))
		}
		if product == nil {
			return nil, refuseProduct(task, v1alpha1.CauseProductNotFound,
				fmt.Sprintf("namespace %q has no Product with this spec.productID", task.Namespace))
		}
		ready := meta.FindStatusCondition(product.Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case ready != nil && ready.Status == metav1.ConditionTrue:
			return product, nil
		case ready != nil:
			return nil, refuseProduct(task, v1alpha1.CauseProductNotReady,
				fmt.Sprintf("Product %q is not Ready: %s: %s", product.Name, ready.Reason, ready.Message))
		}
		select {
		case <-time.After(interval):
		case <-give:
			return nil, refuseProduct(task, v1alpha1.CauseProductNotReady,
				fmt.Sprintf("Product %q has no Ready condition yet: is the operator's manager running?", product.Name))
		case <-ctx.Done():
			return nil, apierrors.NewTimeoutError("wait for Product to become Ready: "+ctx.Err().Error(), 1)
		}
	}
}

// nameFree refuses a name that is taken before a slot is reserved for it: the API
// server would refuse it only afterwards, and the slot would stay until reaped.
func (w *BatchTask) nameFree(ctx context.Context, task *v1alpha1.BatchTask) error {
	taken := &metav1.PartialObjectMetadata{}
	taken.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTask"))
	err := w.Live.Get(ctx, types.NamespacedName{Namespace: task.Namespace, Name: task.Name}, taken)
	switch {
	case err == nil:
		return apierrors.NewAlreadyExists(v1alpha1.GroupVersion.WithResource("batchtasks").GroupResource(), task.Name)
	case apierrors.IsNotFound(err):
		return nil
	default:
		return apierrors.NewInternalError(fmt.Errorf("read task %s/%s: %w", task.Namespace, task.Name, err))
	}
}

// preview tells on a dry run how many devices match now. That is advice: it has a bound
// of its own, and whether the task would be admitted does not depend on it.
func (w *BatchTask) preview(ctx context.Context, task *v1alpha1.BatchTask) []string {
	const defaultAdvice = 2 * time.Second
	patience := cmp.Or(w.Advice, defaultAdvice)
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n, err := w.Matches.CountMatches(bounded, task)
	if err != nil && bounded.Err() != nil {
		return []string{fmt.Sprintf("spec.deviceNameFilter: the devices that match could not be counted within %v", patience)}
	}
	if err != nil {
		logf.FromContext(ctx).Error(err, "Cannot count the devices that match")
		return []string{"spec.deviceNameFilter: the devices that match could not be counted"}
	}
	if n == 1 {
		return []string{"spec.deviceNameFilter: matches 1 device now"}
	}
	return []string{fmt.Sprintf("spec.deviceNameFilter: matches %d devices now", n)}
}

var kind = v1alpha1.GroupVersion.WithKind("BatchTask").GroupKind()

func refuseFields(task *v1alpha1.BatchTask, errs field.ErrorList) error {
	return apierrors.NewInvalid(kind, nameOf(task), errs)
}

// refuseProduct is a field error whose cause type tells programs what is wrong
// with the product.
func refuseProduct(task *v1alpha1.BatchTask, cause metav1.CauseType, detail string) error {
	refusal := apierrors.NewInvalid(kind, nameOf(task), field.ErrorList{
		field.Invalid(field.NewPath("spec", "productID"), task.Spec.ProductID, detail),
	})
	for i := range refusal.ErrStatus.Details.Causes {
		refusal.ErrStatus.Details.Causes[i].Type = cause
	}
	return refusal
}

// refuseQuota turns a full ledger into 403 with the cause TaskLimitExceeded.
func refuseQuota(task *v1alpha1.BatchTask, err error) error {
	var limit *quota.LimitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &limit):
		return apierrors.NewInternalError(fmt.Errorf("reserve a slot for task %s/%s: %w", task.Namespace, nameOf(task), err))
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
		Message: limit.Error(),
		Details: &metav1.StatusDetails{
			Group: kind.Group, Kind: kind.Kind, Name: nameOf(task),
			Causes: []metav1.StatusCause{{Type: v1alpha1.CauseTaskLimitExceeded, Message: limit.Error()}},
		},
	}}
}

func nameOf(task *v1alpha1.BatchTask) string {
	if task.Name == "" {
		return task.GenerateName
	}
	return task.Name
}
