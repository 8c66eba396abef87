{{- define "worker.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- /* The labels by which a component's pods are found; takes (list root component). */ -}}
{{- define "worker.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "worker.labels" -}}
{{ include "worker.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end -}}

{{- define "worker.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What all pods have in common: no rights, no token of Kubernetes, and no variables of other services; takes (list root component). */ -}}
{{- define "worker.pod" -}}
{{- $values := (index . 0).Values -}}
serviceAccountName: {{ include "worker.name" (index . 0) }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: {{ $values.tmpSize }}
  - name: plugins
    {{- toYaml $values.plugins.volume | nindent 4 }}
  - name: secrets
    projected:
      defaultMode: 0440
      sources:
        - secret:
            name: {{ $values.secret.name }}
            items:
              {{- range $setting, $key := $values.secret.files }}
              - key: {{ $key }}
                path: {{ $setting }}
              {{- end }}
        {{- if eq (index . 1) "console" }}
        - secret:
            name: {{ $values.secret.name }}
            items:
              - key: {{ $values.console.tokenKey }}
                path: WORKER_CONSOLE_TOKEN
        {{- end }}
        {{- if $values.ray.tokenSecret }}
        - secret:
            name: {{ $values.ray.tokenSecret }}
            items:
              - key: {{ $values.ray.tokenKey }}
                path: ray-token
        {{- end }}
{{- end -}}

{{- define "worker.container" -}}
image: {{ include "worker.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: plugins
    mountPath: /plugins
    readOnly: true
  - name: secrets
    mountPath: /run/secrets
    readOnly: true
env:
  - name: PLUGINS_DIR
    value: /plugins
  {{- range $setting, $key := .Values.secret.files }}
  - name: {{ $setting }}_FILE
    value: /run/secrets/{{ $setting }}
  {{- end }}
  {{- if .Values.ray.tokenSecret }}
  - name: RAY_AUTH_MODE
    value: token
  - name: RAY_AUTH_TOKEN_PATH
    value: /run/secrets/ray-token
  {{- end }}
  {{- range $setting, $value := .Values.settings }}
  - name: {{ $setting }}
    {{- /* Helm reads a number as a float, and would write a million as 1e+06, which is no whole number to a worker. */}}
    {{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
    value: {{ printf "%.0f" $value | quote }}
    {{- else }}
    value: {{ $value | toString | quote }}
    {{- end }}
  {{- end }}
{{- end -}}
