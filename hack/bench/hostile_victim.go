package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/qcloud"
)

// The victim is the namespace of the environment: a product with Device objects, one with
// rows in a database of its own, and an account of the HTTP front.
const (
	victimRows    = "VICTIMROWS"
	victimDevices = 16
	victimSpeak   = 8 // of them send to the shadow service; tasks are over four of the others
	victimFilter  = "^door-00000(08|09|10|11)$"
	victimOver    = 4
	// victimPatience is how long one act of the victim may take; longer is a failure.
	victimPatience = 30 * time.Second
)

// operation is something that the victim does again and again, and waits for. It returns
// how long it took: what is cleaned up afterwards does not count.
type operation struct {
	name  string
	every time.Duration
	do    func(context.Context) (time.Duration, error)
}

type victim struct {
	env      *localenv.Env
	speakers []*speaker
	names    atomic.Int64
}

// newVictim makes the victim's products and devices. The function closes its devices.
func newVictim(ctx context.Context, env *localenv.Env, db *database) (v *victim, closeAll func(), err error) {
	v = &victim{env: env}
	names := deviceNames(victimDevices)
	if err := makeDevices(ctx, env, names); err != nil {
		return nil, nil, err
	}
	if err := db.add(ctx, fleet.Product{Namespace: env.Namespace, ProductID: victimRows}, names); err != nil {
		return nil, nil, err
	}
	if err := makeTenantDatabase(ctx, env, env.Namespace, victimRows, env.DatabaseURL); err != nil {
		return nil, nil, err
	}
	for _, product := range []*v1alpha1.Product{newProduct(env.Namespace, productID), namedProduct(env.Namespace, victimRows)} {
		if err := awaitProduct(ctx, env, product); err != nil {
			return nil, nil, err
		}
	}
	if err := raiseLimit(ctx, env, env.Namespace, 50); err != nil {
		return nil, nil, err
	}
	if v.speakers, closeAll, err = connectSpeakers(env.MQTTURL, names[:victimSpeak]); err != nil {
		return nil, nil, err
	}
	if err := awaitDevices(ctx, v.speakers); err != nil {
		closeAll()
		return nil, nil, err
	}
	return v, closeAll, nil
}

// namedProduct is a product of which the object is named after its ID: a namespace may
// have several.
func namedProduct(namespace, id string) *v1alpha1.Product {
	p := newProduct(namespace, id)
	p.Name = strings.ToLower(id)
	return p
}

// makeTenantDatabase makes a product whose devices are in that database, and its Secret.
func makeTenantDatabase(ctx context.Context, env *localenv.Env, namespace, id, databaseURL string) error {
	product := namedProduct(namespace, id)
	product.Spec.Fleet = v1alpha1.Fleet{
		Type: v1alpha1.FleetTypePostgres, Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: product.Name}},
	}
	secret := newSecret(namespace, product.Name)
	secret.StringData = map[string]string{v1alpha1.DatabaseURLKey: databaseURL}
	for _, object := range []client.Object{secret, product} {
		if err := env.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T %s/%s: %w", object, namespace, object.GetName(), err)
		}
	}
	return nil
}

func newSecret(namespace, name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// raiseLimit waits for the TaskQuota that the manager makes, and lets so many tasks be
// active.
func raiseLimit(ctx context.Context, env *localenv.Env, namespace string, tasks int) error {
	patch := client.RawPatch(client.Merge.Type(), fmt.Appendf(nil, `{"spec":{"maxActiveTasks":%d}}`, tasks))
	quota := &v1alpha1.TaskQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName}}
	if err := poll(ctx, 20*time.Millisecond, func() error { return env.Client.Patch(ctx, quota, patch) }); err != nil {
		return fmt.Errorf("raise the limit of %s: %w", namespace, err)
	}
	return nil
}

func (v *victim) operations() []operation {
	task := func(of string, update bool) func(context.Context) (time.Duration, error) {
		return func(ctx context.Context) (time.Duration, error) { return v.task(ctx, of, update) }
	}
	shadow := func(k kind, first int) func(context.Context) (time.Duration, error) {
		var turn int
		return func(ctx context.Context) (time.Duration, error) {
			turn++
			started := time.Now()
			err := v.speakers[first+turn%(victimSpeak/2)].must(ctx, k)
			return time.Since(started), err
		}
	}
	return []operation{
		{"PublishMessage over objects, create to Done", 500 * time.Millisecond, task(productID, false)},
		{"PublishMessage over rows, create to Done", 500 * time.Millisecond, task(victimRows, false)},
		{"UpdateShadow over objects, create to Done", 500 * time.Millisecond, task(productID, true)},
		{"UpdateShadow over rows, create to Done", 500 * time.Millisecond, task(victimRows, true)},
		{"a new Product, create to Ready", 500 * time.Millisecond, v.newProduct},
		{"get of a shadow by a device", 100 * time.Millisecond, shadow(gets, 0)},
		{"update of a shadow by a device", 100 * time.Millisecond, shadow(updates, victimSpeak/2)},
		{"CreateTask through the HTTP front", 500 * time.Millisecond, v.createTask},
		{"ListTasks through the HTTP front", 250 * time.Millisecond, v.listTasks},
	}
}

// task runs one to its end.
func (v *victim) task(ctx context.Context, of string, update bool) (time.Duration, error) {
	task := newTask(v.env.Namespace, fmt.Sprintf("victim-%d", v.names.Add(1)), of, victimFilter)
	if update {
		task.Spec.TaskType = v1alpha1.TaskTypeUpdateShadow
		task.Spec.Tasks = v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{
			Desired: fmt.Sprintf(`{"n":%d}`, v.names.Add(1)),
		}}
	}
	took, err := runTask(ctx, v.env, task, victimOver)
	v.remove(ctx, task)
	return took, err
}

// newProduct makes one and waits until tasks may run.
func (v *victim) newProduct(ctx context.Context) (time.Duration, error) {
	n := v.names.Add(1)
	product := newProduct(v.env.Namespace, fmt.Sprintf("VICTIM%04d", n%32))
	product.Name = fmt.Sprintf("new-%d", n)
	started := time.Now()
	if err := v.env.Client.Create(ctx, product); err != nil {
		return 0, fmt.Errorf("create product: %w", err)
	}
	err := awaitProduct(ctx, v.env, product)
	took := time.Since(started)
	v.remove(ctx, product)
	return took, err
}

func (v *victim) createTask(ctx context.Context) (time.Duration, error) {
	started := time.Now()
	answer, err := callFront(ctx, v.env.APIURL, v.env.SecretID, v.env.SecretKey, map[string]string{
		"Action": qcloud.ActionCreateTask, "taskType": "PublishMessage", "productID": productID, "deviceNameFilter": victimFilter,
		"tasks": `{"publishMessageTask":{"topic":"event","payload":"close"}}`, "scheduleTimeInSeconds": strconv.FormatInt(time.Now().Unix(), 10),
	})
	took := time.Since(started)
	if err == nil {
		v.remove(ctx, newTask(v.env.Namespace, answer.TaskID, productID, ""))
	}
	return took, err
}

func (v *victim) listTasks(ctx context.Context) (time.Duration, error) {
	started := time.Now()
	_, err := callFront(ctx, v.env.APIURL, v.env.SecretID, v.env.SecretKey, listOfTasks)
	return time.Since(started), err
}

// remove deletes what has served its purpose; if that fails it only costs a little more.
func (v *victim) remove(ctx context.Context, object client.Object) {
	_ = v.env.Client.Delete(context.WithoutCancel(ctx), object)
}

// frontAnswer is what is looked at of the HTTP front's answers.
type frontAnswer struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	TaskID  string `json:"taskId"`
}

var listOfTasks = map[string]string{"Action": qcloud.ActionListTasks, "pageNum": "1", "pageSize": "50"}

// callFront makes one call of the older version of the API. An answer that is an error
// there is one here.
func callFront(ctx context.Context, apiURL, secretID, secretKey string, params map[string]string) (*frontAnswer, error) {
	signer := qcloud.Signer{Version: qcloud.V2, Host: qcloud.DefaultHosts()[0], SecretID: secretID, SecretKey: secretKey}
	form := qcloud.EncodeForm(signer.Sign(http.MethodPost, time.Now(), params))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, apiURL+qcloud.V2.Path(), strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return askFront(request)
}

func askFront(request *http.Request) (*frontAnswer, error) {
	response, err := hostileClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	answer := &frontAnswer{}
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("the HTTP front answers %s %.200q", response.Status, text)
	}
	if answer.Code != 0 {
		return nil, fmt.Errorf("the HTTP front answers %d: %s", answer.Code, answer.Message)
	}
	return answer, nil
}

// hostileClient keeps connections, as many as are used at once.
var hostileClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}, Timeout: victimPatience}

// lived is what the victim has lived through in one phase.
type lived struct {
	mu     sync.Mutex
	took   map[string]*series // ms, by operation
	failed map[string]int
	reason map[string]error // of the first that failed
}

// live does all that the victim does until ctx ends.
func (v *victim) live(ctx context.Context) *lived {
	l := &lived{took: map[string]*series{}, failed: map[string]int{}, reason: map[string]error{}}
	var wg sync.WaitGroup
	for _, op := range v.operations() {
		l.took[op.name] = &series{}
		wg.Go(func() {
			tick := time.NewTicker(op.every)
			defer tick.Stop()
			for ctx.Err() == nil {
				l.note(ctx, op)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	return l
}

// note does it once. What has begun is completed, also when the phase is over: else what
// takes long would not count. A failure counts as if it had taken as long as the victim waits.
func (l *lived) note(ctx context.Context, op operation) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), victimPatience)
	defer cancel()
	took, err := op.do(bounded)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		took = victimPatience
		if l.failed[op.name]++; l.reason[op.name] == nil {
			l.reason[op.name] = err
		}
	}
	l.took[op.name].add(float64(took.Microseconds())/1000, nil)
}

// alone is a percentile of what an operation took where nothing is hostile: it says nothing
// if some of them failed.
func (l *lived) alone(name string, percent int) reading {
	if failed := l.failed[name]; failed > 0 {
		return reading{err: fmt.Errorf("%d of %d failed beside harmless requests: %w", failed, len(l.took[name].values), l.reason[name])}
	}
	return l.took[name].percentile(percent)
}

// failures are all that failed, and what all there were.
func (l *lived) failures() (failed, all int) {
	for name, took := range l.took {
		failed, all = failed+l.failed[name], all+len(took.values)
		if reason := l.reason[name]; reason != nil {
			progress("of " + strconv.Itoa(len(took.values)) + " of " + name + " " + strconv.Itoa(l.failed[name]) + " failed, the first: " + reason.Error())
		}
	}
	return failed, all
}
