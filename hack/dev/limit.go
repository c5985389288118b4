package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// showLimit fills the namespace with tasks that wait for an hour, shows that one
// more is refused, and that there is room for it once one is cancelled.
func (d *demo) showLimit(ctx context.Context) error {
	inAnHour := time.Now().Add(time.Hour).Unix()
	var tasks []*v1alpha1.BatchTask
	for i := range v1alpha1.DefaultMaxActiveTasks {
		task := d.later(fmt.Sprintf("later-%d", i+1), inAnHour)
		if err := d.create(ctx, task); err != nil {
			return err
		}
		tasks = append(tasks, task)
	}
	d.out.line("  %d tasks are created that start in an hour", len(tasks))

	sixth := d.later(fmt.Sprintf("later-%d", len(tasks)+1), inAnHour)
	err := d.env.Client.Create(ctx, sixth)
	var refused *apierrors.StatusError
	if !errors.As(err, &refused) {
		return fmt.Errorf("one task more than the limit was not refused, but: %w", orNil(err))
	}
	d.out.line("  %s", d.out.paint(red, fmt.Sprintf("Error from server (%s): %s", refused.ErrStatus.Reason, refused.Error())))
	if !limitExceeded(refused.ErrStatus) {
		return fmt.Errorf("one task more than the limit was refused for another reason: %w", err)
	}
	d.out.good("the next one is refused: %d, cause %s", refused.ErrStatus.Code, v1alpha1.CauseTaskLimitExceeded)

	cancelled := tasks[0]
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cancel":true}}`))
	if err := d.env.Client.Patch(ctx, cancelled, patch); err != nil {
		return fmt.Errorf("cancelling task %s: %w", cancelled.Name, err)
	}
	if err := d.createWhenFree(ctx, sixth); err != nil {
		return err
	}
	d.out.good("%s is cancelled, and now there is room for it", cancelled.Name)
	return nil
}

func (d *demo) later(name string, at int64) *v1alpha1.BatchTask {
	return &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: d.env.Namespace},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: v1alpha1.TaskTypePublishMessage, ProductID: productID, DeviceNameFilter: "^door", ScheduleTimeInSeconds: at,
			Tasks: v1alpha1.TaskDetails{PublishMessageTask: &v1alpha1.PublishMessageTask{Topic: topic, Payload: "later"}},
			// Sent as it is, so not left to the defaults of the API.
			MaxExecutionTimeInSeconds: 86400, TTLSecondsAfterFinished: ptr.To[int32](3600),
		},
	}
}

func (d *demo) create(ctx context.Context, task *v1alpha1.BatchTask) error {
	if err := d.createWhenFree(ctx, task); err != nil {
		return fmt.Errorf("creating task %s: %w", task.Name, err)
	}
	return nil
}

// createWhenFree gives the place of a task that has just ended a moment to become
// free: that follows its last status.
func (d *demo) createWhenFree(ctx context.Context, task *v1alpha1.BatchTask) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := d.env.Client.Create(ctx, task)
		var refused *apierrors.StatusError
		if err == nil || !errors.As(err, &refused) || !limitExceeded(refused.ErrStatus) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func limitExceeded(status metav1.Status) bool {
	return status.Code == http.StatusForbidden && status.Details != nil && len(status.Details.Causes) > 0 &&
		status.Details.Causes[0].Type == v1alpha1.CauseTaskLimitExceeded
}

// orNil makes an error of nil that says so.
func orNil(err error) error {
	if err == nil {
		return errors.New("accepted")
	}
	return err
}
