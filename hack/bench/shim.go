package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/qcloud"
)

// The HTTP front: CreateTask through it against the same creates made straight at
// the API server. Tasks wait for an hour, so nothing is measured but creating them,
// and they are spread over accounts, since those of one account are admitted one
// after the other.
const (
	accounts        = 8
	tasksPerAccount = 25
	frontRounds     = 5
	frontPairs      = 200
)

// creator makes one task of an account.
type creator func(ctx context.Context, account int) error

type front struct {
	env     *localenv.Env
	names   atomic.Int64
	nonces  atomic.Uint64
	startAt int64
}

func measureShim(ctx context.Context, env *localenv.Env) ([]figure, error) {
	f := &front{env: env, startAt: time.Now().Add(2 * time.Hour).Unix()}
	progress("making accounts for the HTTP front")
	if err := f.makeAccounts(ctx); err != nil {
		return nil, err
	}
	var direct, through []float64
	for round := range frontRounds + 1 {
		first, err := f.rate(ctx, f.create)
		if err != nil {
			return nil, err
		}
		second, err := f.rate(ctx, f.call)
		if err != nil {
			return nil, err
		}
		if round == 0 {
			continue // connections are made, caches filled
		}
		direct, through = append(direct, first), append(through, second)
		progress(fmt.Sprintf("creates: %.0f/s at the API server, %.0f/s through the HTTP front", first, second))
	}
	straight, added, err := f.latencies(ctx)
	if err != nil {
		return nil, err
	}
	limit, rate := median(direct), median(through)
	at := func(values []float64, percent int) float64 { return values[len(values)*percent/100] }
	return []figure{
		{
			Case: fmt.Sprintf("CreateTask through the HTTP front, %d accounts at once", accounts), Value: rate, Unit: "calls/s",
			Limit: limit, LimitIs: "the same creates straight at the API server", Ratio: rate / limit, Aim: ">= 0.8",
		},
		{Case: "the same, one at a time: time added, p50", Value: at(added, 50) - at(straight, 50), Unit: "ms", Aim: "< 5"},
		{Case: "the same, one at a time: time added, p99", Value: at(added, 99) - at(straight, 99), Unit: "ms"},
		{Case: "create straight at the API server, one at a time, p50", Value: at(straight, 50), Unit: "ms"},
	}, nil
}

func namespaceOf(account int) string { return fmt.Sprintf("account-%d", account) }
func productOf(account int) string   { return fmt.Sprintf("FRONT%d", account) }

func (f *front) makeAccounts(ctx context.Context) error {
	for account := range accounts {
		namespace := namespaceOf(account)
		for _, object := range []client.Object{
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
			&v1alpha1.Product{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "bench"},
				Spec:       v1alpha1.ProductSpec{ProductID: productOf(account)},
			},
			&corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "caller", Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
				StringData: map[string]string{v1alpha1.CredentialsSecretID: namespace, v1alpha1.CredentialsSecretKey: "key"},
			},
		} {
			if err := f.env.Client.Create(ctx, object); err != nil {
				return fmt.Errorf("make account %s: %w", namespace, err)
			}
		}
		if err := f.raiseLimit(ctx, namespace); err != nil {
			return err
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err := f.call(ctx, account)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("account %s is not served: %w", namespace, err)
			}
		}
	}
	return f.clear(ctx)
}

// raiseLimit waits for the TaskQuota that the manager makes, and lets more tasks wait.
func (f *front) raiseLimit(ctx context.Context, namespace string) error {
	patch := client.RawPatch(client.Merge.Type(), []byte(`{"spec":{"maxActiveTasks":1000}}`))
	quota := &v1alpha1.TaskQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f.env.Client.Patch(ctx, quota, patch)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("raise the limit of %s: %w", namespace, err)
		}
	}
}

// rate creates tasks in all accounts at once, returns how many a second, and
// removes them.
func (f *front) rate(ctx context.Context, create creator) (float64, error) {
	started := time.Now()
	group, creating := errgroup.WithContext(ctx)
	for account := range accounts {
		group.Go(func() error {
			for range tasksPerAccount {
				if err := create(creating, account); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	took := time.Since(started)
	return accounts * tasksPerAccount / took.Seconds(), f.clear(ctx)
}

// latencies makes pairs of creates, one of each kind, and returns their times in
// milliseconds, sorted.
func (f *front) latencies(ctx context.Context) (direct, through []float64, err error) {
	for pair := range frontPairs {
		for _, kind := range []struct {
			create creator
			took   *[]float64
		}{{f.create, &direct}, {f.call, &through}} {
			started := time.Now()
			if err := kind.create(ctx, pair%accounts); err != nil {
				return nil, nil, err
			}
			*kind.took = append(*kind.took, float64(time.Since(started).Microseconds())/1000)
		}
		if pair%accounts == accounts-1 {
			if err := f.clear(ctx); err != nil {
				return nil, nil, err
			}
		}
	}
	slices.Sort(direct)
	slices.Sort(through)
	return direct, through, nil
}

// create makes a task straight at the API server.
func (f *front) create(ctx context.Context, account int) error {
	return f.env.Client.Create(ctx, &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(account), Name: fmt.Sprintf("task-%d", f.names.Add(1))},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: v1alpha1.TaskTypePublishMessage, ProductID: productOf(account), DeviceNameFilter: "^door", ScheduleTimeInSeconds: f.startAt,
			Tasks:                   v1alpha1.TaskDetails{PublishMessageTask: &v1alpha1.PublishMessageTask{Topic: topic, Payload: payload}},
			TTLSecondsAfterFinished: ptr.To(v1alpha1.DefaultTTLSecondsAfterFinished),
		},
	})
}

// call makes one through the HTTP front.
func (f *front) call(ctx context.Context, account int) error {
	params := map[string]string{
		"Action": "CreateTask", "taskType": "PublishMessage", "productID": productOf(account), "deviceNameFilter": "^door",
		"scheduleTimeInSeconds": strconv.FormatInt(f.startAt, 10), "tasks": `{"publishMessageTask":{"topic":"event","payload":"close"}}`,
		"SecretId": namespaceOf(account), "Timestamp": strconv.FormatInt(time.Now().Unix(), 10),
		"Nonce": strconv.FormatUint(f.nonces.Add(1), 10), "Region": "gz",
	}
	params["Signature"] = qcloud.Sign("", "key", qcloud.StringToSign(http.MethodPost, qcloud.DefaultHosts()[0], qcloud.V2.Path(), params))
	form := url.Values{}
	for name, value := range params {
		form.Set(name, value)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, f.env.APIURL+qcloud.V2.Path(), strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := shimClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	var outcome struct {
		TaskID string `json:"taskId"`
	}
	if err := json.Unmarshal(text, &outcome); err != nil || outcome.TaskID == "" {
		return fmt.Errorf("CreateTask is answered %s", text)
	}
	return nil
}

// shimClient keeps a connection for each account.
var shimClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * accounts}}

// clear deletes all tasks and waits until their slots are free.
func (f *front) clear(ctx context.Context) error {
	for account := range accounts {
		if err := f.env.Client.DeleteAllOf(ctx, &v1alpha1.BatchTask{}, client.InNamespace(namespaceOf(account))); err != nil {
			return fmt.Errorf("delete tasks: %w", err)
		}
	}
	for account := range accounts {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			quota := &v1alpha1.TaskQuota{}
			if err := f.env.Client.Get(ctx, client.ObjectKey{Namespace: namespaceOf(account), Name: v1alpha1.TaskQuotaName}, quota); err != nil {
				return fmt.Errorf("read the limit of %s: %w", namespaceOf(account), err)
			}
			if len(quota.Status.Slots) == 0 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%d slots of %s are not freed", len(quota.Status.Slots), namespaceOf(account))
			}
		}
	}
	return nil
}
