package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
)

// creator makes one task of an account.
type creator func(ctx context.Context, account int) error

type front struct {
	env     *localenv.Env
	names   atomic.Int64
	startAt int64
}

func measureShim(ctx context.Context, env *localenv.Env, rounds, pairs int) ([]figure, error) {
	f := &front{env: env, startAt: time.Now().Add(2 * time.Hour).Unix()}
	progress("making accounts for the HTTP front")
	if err := f.makeAccounts(ctx); err != nil {
		return nil, err
	}
	var direct, through series
	for round := range rounds + 1 {
		straight, straightErr := f.rate(ctx, f.create)
		called, err := f.rate(ctx, f.call)
		if err != nil {
			return nil, err
		}
		if round == 0 {
			continue // connections are made, caches filled
		}
		direct.add(straight, straightErr)
		through.add(called, nil)
		progress(fmt.Sprintf("creates: %s at the API server, %s through the HTTP front", direct.last(), through.last()))
	}
	straight, called := f.latencies(ctx, pairs)
	if called.err != nil {
		return nil, called.err
	}
	added := func(percent int) figure {
		return newDifference(fmt.Sprintf("the same, one at a time: time added, p%d", percent), called.percentile(percent), straight.percentile(percent))
	}
	return []figure{
		newFigure(fmt.Sprintf("CreateTask through the HTTP front, %d accounts at once", accounts), "calls/s", through.median()).
			beside(direct.median(), "the same creates straight at the API server").aiming(&aim{ofRatio, atLeast, 0.8}),
		added(50).aiming(&aim{ofValue, atMost, 5}),
		added(99),
		newFigure("create straight at the API server, one at a time, p50", "ms", straight.percentile(50)),
	}, nil
}

func namespaceOf(account int) string { return fmt.Sprintf("account-%d", account) }
func productOf(account int) string   { return fmt.Sprintf("FRONT%d", account) }

func (f *front) makeAccounts(ctx context.Context) error {
	for account := range accounts {
		namespace := namespaceOf(account)
		for _, object := range []client.Object{
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
			newProduct(namespace, productOf(account)),
			&corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "caller", Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
				StringData: map[string]string{v1alpha1.CredentialsSecretID: namespace, v1alpha1.CredentialsSecretKey: "key"},
			},
		} {
			if err := f.env.Client.Create(ctx, object); err != nil {
				return fmt.Errorf("make account %s: %w", namespace, err)
			}
		}
		if err := raiseLimit(ctx, f.env, namespace, 1000); err != nil {
			return err
		}
		if err := poll(ctx, 20*time.Millisecond, func() error { return f.call(ctx, account) }); err != nil {
			return fmt.Errorf("account %s is not served: %w", namespace, err)
		}
	}
	return f.clear(ctx)
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
	err := group.Wait()
	took := time.Since(started)
	return accounts * tasksPerAccount / took.Seconds(), errors.Join(err, f.clear(ctx))
}

// latencies makes pairs of creates, one of each kind, and returns their times in
// milliseconds.
func (f *front) latencies(ctx context.Context, pairs int) (direct, through *series) {
	direct, through = &series{}, &series{}
	for pair := range pairs {
		for _, kind := range []struct {
			create creator
			took   *series
		}{{f.create, direct}, {f.call, through}} {
			started := time.Now()
			err := kind.create(ctx, pair%accounts)
			kind.took.add(float64(time.Since(started).Microseconds())/1000, err)
		}
		if through.err != nil {
			break
		}
		if pair%accounts == accounts-1 {
			if err := f.clear(ctx); err != nil {
				through.add(0, err)
				break
			}
		}
	}
	return direct, through
}

// create makes a task straight at the API server.
func (f *front) create(ctx context.Context, account int) error {
	task := newTask(namespaceOf(account), fmt.Sprintf("task-%d", f.names.Add(1)), productOf(account), "^door")
	task.Spec.ScheduleTimeInSeconds = f.startAt
	task.Spec.TTLSecondsAfterFinished = ptr.To(v1alpha1.LegacyTTLSecondsAfterFinished)
	return f.env.Client.Create(ctx, task)
}

// call makes one through the HTTP front.
func (f *front) call(ctx context.Context, account int) error {
	signer := qcloud.Signer{Version: qcloud.V2, Host: qcloud.DefaultHosts()[0], SecretID: namespaceOf(account), SecretKey: "key"}
	form := qcloud.EncodeForm(signer.Sign(http.MethodPost, time.Now(), map[string]string{
		"Action": "CreateTask", "taskType": "PublishMessage", "productID": productOf(account), "deviceNameFilter": "^door",
		"scheduleTimeInSeconds": strconv.FormatInt(f.startAt, 10), "tasks": `{"publishMessageTask":{"topic":"event","payload":"close"}}`,
		"Region": "gz",
	}))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, f.env.APIURL+qcloud.V2.Path(), strings.NewReader(form))
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
		if err := awaitNoSlots(ctx, f.env, namespaceOf(account)); err != nil {
			return err
		}
	}
	return nil
}
